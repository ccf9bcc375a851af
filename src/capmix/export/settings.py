"""Options of `capmix export`."""

from typing import Literal

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
    text_suffix: str = option(
        TEXT_SUFFIX,
        "Suffix of text files, for --sidecars and --format files and kohya; .caption for example.",
        group=FILES,
        pattern=r"^\.[A-Za-z0-9_-]{1,20}$",
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
    push: str | None = option(
        None,
        "Upload the export to this data set of the Hugging Face Hub, USER/NAME, which is created "
        "if it is new. Needs capmix[hub].",
        group=HUB,
        metavar="USER/NAME",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
    )
    private: bool = option(False, "Create a private data set.", group=HUB)
