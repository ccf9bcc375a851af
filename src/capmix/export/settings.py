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
FORMS: tuple[Form, ...] = ("files", "kohya", "llava", "imagefolder")  # of image files
WITH_TEXT_FILES: tuple[Form, ...] = ("files", "kohya")
OF_SIDECARS: tuple[Form, ...] = ("webdataset", *WITH_TEXT_FILES)  # the first is "not given"
SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,20}")
DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
SHOWN = 80  # characters of a bad value in an error


def _suffix(given: str) -> str:
    if not SUFFIX.fullmatch(given):
        raise ValueError(
            "expected a dot and 1 to 20 letters, digits, - and _, such as .caption, found "
            f"{given[:SHOWN]!r}"
        )
    return given


def _dataset(given: str) -> str:
    if not DATASET.fullmatch(given):
        raise ValueError(
            f"expected USER/NAME, such as anna/photo-captions, found {given[:SHOWN]!r}"
        )
    return given


class ExportSettings(Settings):
    """In which form a subset is written."""

    format: Form = option(
        "webdataset",
        "webdataset: tars of image, text and JSON. datacomp: tars with untouched members, as "
        "DataComp's resharder. parquet: images embedded, for Hugging Face datasets. lance: the "
        "same columns as a Lance dataset. jsonl: image files by uid with .txt and JSON lines. csv: "
        "uid and text, no images. With images under their own paths and names: files (a text file "
        "beside each), kohya (the same with one caption per line, and metadata.json), llava "
        "(llava.json), imagefolder (metadata.parquet).",
    )
    samples_per_shard: int = option(
        SAMPLES_PER_SHARD, "Samples per shard; formats of image files have none.", ge=1
    )
    sidecars: bool = option(
        False,
        "Write text files beside the pool's own images, and nothing else; takes no --out.",
        group=FILES,
    )
    text_suffix: Annotated[str, AfterValidator(_suffix)] = option(
        TEXT_SUFFIX,
        "Suffix of text files, for --sidecars and --format files and kohya; .caption for example.",
        group=FILES,
    )
    link: Literal["hard"] | None = option(
        None,
        "Hard links to the pool's images in place of copies, in formats of image files.",
        group=FILES,
    )
    overwrite: bool = option(
        False,
        "Replace files that are there: images and texts of --sidecars and of formats of image "
        "files; with --push, remove from the Hub what this export lacks.",
        group=FILES,
    )
    push: Annotated[str, AfterValidator(_dataset)] | None = option(
        None,
        "Upload the export to this data set of the Hugging Face Hub, USER/NAME, which is created "
        "if it is new. Needs capmix[hub].",
        group=HUB,
        metavar="USER/NAME",
    )
    private: bool = option(
        False, "Create a private data set; one that exists and is public is refused.", group=HUB
    )

    @model_validator(mode="after")
    def _have_effect(self) -> Self:
        for fault in self._without_effect():
            raise ValueError(fault)
        return self

    def _without_effect(self) -> Iterator[str]:
        """What is wrong with options that this form would ignore."""
        form = "--sidecars" if self.sidecars else f"--format {self.format}"
        is_of_files = self.format in FORMS and not self.sidecars
        has_texts = self.sidecars or self.format in WITH_TEXT_FILES
        if self.sidecars and self.format not in OF_SIDECARS:
            yield (
                f"--sidecars: --format {self.format} is no form of text files; name files or kohya"
            )
        if self.link and not is_of_files:
            yield f"--link: {form} writes no image files; name one of {', '.join(FORMS)}"
        if self.text_suffix != TEXT_SUFFIX and not has_texts:
            yield (
                f"--text-suffix: {form} has no text files to name; give --sidecars, or --format "
                "files or kohya"
            )
        if self.overwrite and not (self.sidecars or is_of_files or self.push):
            yield (
                f"--overwrite: {form} without --push replaces an earlier export and nothing else; "
                "leave it out"
            )
        has_shards = not (self.sidecars or is_of_files or self.format == "csv")
        if self.samples_per_shard != SAMPLES_PER_SHARD and not has_shards:
            yield f"--samples-per-shard: {form} has no shards of a fixed size; leave it out"
        if self.private and not self.push:
            yield "--private is of --push USER/NAME"
