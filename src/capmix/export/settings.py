"""Options of `capmix export`."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from capmix.settings.base import Settings, option

Form = Literal[
    "webdataset",
    "datacomp",
    "parquet",
    "lance",
    "jsonl",
    "csv",
    "files",
    "kohya",
    "llava",
    "imagefolder",
]
SAMPLES_PER_SHARD = 10_000
TEXT_SUFFIX = ".txt"
FILES, HUB = "Image files", "Hugging Face Hub"
FORMS: tuple[Form, ...] = ("files", "kohya", "llava", "imagefolder")  # formats of image files
WITH_TEXT_FILES: tuple[Form, ...] = ("files", "kohya")
# Formats allowed with --sidecars; webdataset is the default and means that none was given.
OF_SIDECARS: tuple[Form, ...] = ("webdataset", *WITH_TEXT_FILES)
SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}")
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
SHOWN = 80  # characters of a bad value in an error


def _suffix(given: str) -> str:
    if not SUFFIX.fullmatch(given):
        raise ValueError(
            "expected a dot and 1 to 20 letters, digits, - or _, for example .caption, found "
            f"{given[:SHOWN]!r}"
        )
    return given


def _dataset(given: str) -> str:
    if not DATASET.fullmatch(given):
        raise ValueError(
            f"expected USER/NAME, for example anna/photo-captions, found {given[:SHOWN]!r}"
        )
    return given


class ExportSettings(Settings):
    """Output format of a subset."""

    format: Form = option(
        "webdataset",
        "webdataset: tars of images, texts and JSON. datacomp: tars with unchanged members, like "
        "DataComp's resharder. parquet: embedded images, for Hugging Face datasets. lance: the "
        "same columns as a Lance dataset. jsonl: image files named by uid, with .txt files and "
        "JSON lines. csv: uid and text, no images. Formats that keep the images' paths and names: "
        "files (with a text file per image), kohya (with one caption per line, and "
        "metadata.json), llava (with llava.json), imagefolder (with metadata.parquet).",
    )
    samples_per_shard: int = option(
        SAMPLES_PER_SHARD,
        "Samples per shard; not for files, kohya, llava, imagefolder and csv.",
        ge=1,
    )
    sidecars: bool = option(
        False,
        "Write only text files, beside the pool's own images; cannot be combined with --out.",
        group=FILES,
    )
    text_suffix: Annotated[str, AfterValidator(_suffix)] = option(
        TEXT_SUFFIX,
        "Suffix of text files, for example .caption; for --sidecars and --format files or kohya.",
        group=FILES,
    )
    link: Literal["hard"] | None = option(
        None,
        "Create hard links to the pool's images instead of copies; for --format files, kohya, "
        "llava and imagefolder.",
        group=FILES,
    )
    overwrite: bool = option(
        False,
        "Replace existing files, with --sidecars and --format files, kohya, llava and imagefolder; "
        "with --push, replace README.md on the Hub and remove files that this export does not "
        "have.",
        group=FILES,
    )
    push: Annotated[str, AfterValidator(_dataset)] | None = option(
        None,
        "Upload the export to this Hugging Face Hub dataset; it is created if it does not exist. "
        "Requires capmix[hub].",
        group=HUB,
        metavar="USER/NAME",
    )
    private: bool = option(
        False, "Create a private dataset; fails if the dataset exists and is public.", group=HUB
    )

    @model_validator(mode="after")
    def _have_effect(self) -> Self:
        for fault in self._without_effect():
            raise ValueError(fault)
        return self

    def _without_effect(self) -> Iterator[str]:
        """Yield an error for each option that this format would ignore."""
        form = "--sidecars" if self.sidecars else f"--format {self.format}"
        is_of_files = self.format in FORMS and not self.sidecars
        has_texts = self.sidecars or self.format in WITH_TEXT_FILES
        if self.sidecars and self.format not in OF_SIDECARS:
            yield (
                f"--sidecars: --format {self.format} has no text files; use --format files or kohya"
            )
        if self.link and not is_of_files:
            yield f"--link: {form} writes no image files; use --format {' or '.join(FORMS)}"
        if self.text_suffix != TEXT_SUFFIX and not has_texts:
            yield (
                f"--text-suffix applies to --sidecars and --format files or kohya, not to {form}; "
                "remove it"
            )
        if self.overwrite and not (self.sidecars or is_of_files or self.push):
            yield (
                f"--overwrite has no effect on {form} without --push, which replaces earlier "
                "exports anyway; remove it"
            )
        has_shards = not (self.sidecars or is_of_files or self.format == "csv")
        if self.samples_per_shard != SAMPLES_PER_SHARD and not has_shards:
            yield f"--samples-per-shard: {form} has no shards of a fixed size; remove it"
        if self.private and not self.push:
            yield "--private requires --push USER/NAME"
