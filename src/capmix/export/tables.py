"""Write samples as Parquet with embedded images, or as image files with JSON lines."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from capmix.export.samples import Chosen
from capmix.storage.record import Sink
from capmix.storage.store import Store

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROW_GROUP = 100  # samples; the unit the Hub's viewer reads, a few MB of images


def parquet_schema(sources: Iterable[str]) -> pa.Schema:
    """Return the schema, with metadata that makes Hugging Face datasets decode `image`."""
    kinds: dict[str, tuple[pa.DataType, str]] = {
        "uid": (pa.string(), "string"),
        "text": (pa.string(), "string"),
        "source": (pa.string(), "string"),
        "k": (pa.int32(), "int32"),
        "score": (pa.float32(), "float32"),
        "filename": (pa.string(), "string"),
        **{f"caption_{source}": (pa.string(), "string") for source in sources},
    }
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": kind, "_type": "Value"} for name, (_, kind) in kinds.items()}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    fields = [("image", IMAGE), *((name, kind) for name, (kind, _) in kinds.items())]
    return pa.schema(fields, metadata=about)


def write_parquet(stream: Sink, samples: Iterable[Chosen], schema: pa.Schema) -> int:
    """Write all copies of all samples; return the number of rows."""
    written = 0
    waiting: list[dict[str, Any]] = []
    # Image bytes are compressed already; compressing them again costs time and saves nothing.
    packed = {name: "none" if name == "image" else "zstd" for name in schema.names}
    packed |= {"image.bytes": "none", "image.path": "zstd"}
    packed.pop("image")
    with pq.ParquetWriter(stream, schema, compression=packed, use_dictionary=["source"]) as writer:
        for chosen in samples:
            waiting += [parquet_row(chosen, copy, schema) for copy in chosen.copies]
            if len(waiting) >= ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                written, waiting = written + len(waiting), []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema))
    return written + len(waiting)


def parquet_row(chosen: Chosen, copy: int, schema: pa.Schema) -> dict[str, Any]:
    """Return the column values of one copy of a sample; see parquet_schema."""
    sample, row = chosen.sample, chosen.row
    image = {"bytes": sample.image, "path": f"{sample.uid}-{copy}.{sample.suffix}"}
    fields = {"image": image, "uid": sample.uid, "text": row["text"], "source": row["source"]}
    fields |= {"k": row["k"], "score": row["score"], "filename": chosen.filename}
    fields |= chosen.captions
    return {name: fields.get(name) for name in schema.names}


def write_images(target: Store, folder: str, stream: Sink, samples: Iterable[Chosen]) -> int:
    """Write image files to `folder`, a .txt caption beside each, and JSON lines to `stream`.

    The lines have `file_name` and `text`, as read by Hugging Face's imagefolder. Returns the number
    of copies.
    """
    written = 0
    for chosen in samples:
        for copy in chosen.copies:
            name = f"{folder}/{chosen.sample.uid}-{copy}"
            path, text = f"{name}.{chosen.sample.suffix}", chosen.row["text"]
            target.write_bytes(path, chosen.sample.image, sync=False)
            target.write_bytes(f"{name}.txt", text.encode("utf-8"), sync=False)
            line = {
                "id": f"{chosen.sample.uid}-{copy}",
                "file_name": path,
                "text": text,
                "source": chosen.row["source"],
                "score": chosen.row["score"],
                "filename": chosen.filename,
                **chosen.captions,
            }
            stream.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            written += 1
    return written
