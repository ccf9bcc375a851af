"""Hugging Face's imagefolder layout: images in `train/` with `train/metadata.parquet`.

Images are in `train/` so that the loader does not read the export's other files, and does not take
a pool folder named `test` for a split. The metadata is Parquet because loaders infer the types of
JSON lines from the first rows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capmix.storage.record import Sink

FOLDER = "train"
AT_ONCE = 1_000  # rows per row group


def imagefolder_schema(sources: Sequence[str]) -> pa.Schema:
    """Return the schema. Loaders turn `file_name` into the column `image`."""
    fields = [
        ("file_name", pa.string()),
        ("text", pa.string()),
        ("uid", pa.string()),
        ("source", pa.string()),
        ("k", pa.int32()),
        ("score", pa.float32()),
        ("filename", pa.string()),
    ]
    return pa.schema(fields + [(f"caption_{source}", pa.string()) for source in sources])


def write_imagefolder(
    stream: Sink, lines: Iterable[Mapping[str, Any]], sources: Sequence[str]
) -> None:
    """Write one row per text of each image; a text of weight 3 is written three times."""
    schema = imagefolder_schema(sources)
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for row in _rows(lines):
            waiting.append({name: row.get(name) for name in schema.names})
            if len(waiting) == AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))


def _rows(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for line in lines:
        about = {name: line[name] for name in ("file_name", "uid", "filename")}
        for text in line["texts"]:
            for _ in range(text["weight"]):
                yield about | line["captions"] | text
