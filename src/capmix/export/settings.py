"""Options of `capmix export`."""

from typing import Literal

from capmix.settings.base import Settings, option

Form = Literal["webdataset", "datacomp", "parquet", "lance", "jsonl", "csv"]
SAMPLES_PER_SHARD = 10_000


class ExportSettings(Settings):
    """In which form a subset is written."""

    format: Form = option(
        "webdataset",
        "webdataset: tars of image, text and JSON. datacomp: tars with untouched members, as "
        "DataComp's resharder. parquet: images embedded, for Hugging Face datasets. lance: the "
        "same columns as a Lance dataset. jsonl: image files with .txt and JSON lines, for kohya "
        "and LLaVA. csv: uid and text, no images.",
    )
    samples_per_shard: int = option(SAMPLES_PER_SHARD, "Samples per shard.", ge=1)
