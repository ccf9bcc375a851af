"""Read pools of parquet files: with images (as written by Hugging Face datasets) or only metadata.

Each file is a shard, each row a sample with its row number as key. The image column is the first
struct with a field `bytes`, or binary column named `image`, `img` or an image suffix. The text
column is the first of TEXT_COLUMNS. Other columns of strings, numbers and booleans are the sample's
metadata. Files without images (DataComp's metadata) can be mixed, to select samples before their
images are downloaded.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.pool.formats import format_of
from capmix.pool.sample import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    SAFE_UID,
    BadSample,
    Sample,
    uid_from_path,
)
from capmix.storage.rows import FAILED, OK, STATUS_FIELDS

TEXT_COLUMNS = ("text", "caption", "txt", "TEXT")
IMAGE_COLUMNS = ("image", "img", *IMAGE_SUFFIXES)
SIZES = {"width": ("width", "original_width"), "height": ("height", "original_height")}
ROWS_AT_ONCE = 16  # a few compressed bytes can expand to images of the largest allowed size
KEY_DIGITS = 9
RESERVED = ("shard", "draw", "repeat_draw")  # columns that recipes define


@dataclass(frozen=True)
class ParquetForm:
    """The names of the image, text and uid columns; None for a column that does not exist."""

    image: str | None
    text: str | None
    uid: str | None

    @classmethod
    def of(cls, schema: pa.Schema) -> "ParquetForm":
        """Find the columns in a schema.

        Raises ArrowInvalid if two columns have the same name: neither can be read by name.
        """
        name, times = next(iter(Counter(schema.names).most_common(1)), ("", 0))
        if times > 1:
            raise pa.ArrowInvalid(f"{times} columns are named {name!r:.80}; expected unique names")
        image = next((f.name for f in schema if _holds_images(f)), None)
        words = [f.name for f in schema if _is_text(f.type)]
        text = next((name for name in TEXT_COLUMNS if name in words), None)
        return cls(image, text, "uid" if "uid" in words else None)

    def needed(self, schema: pa.Schema) -> list[str]:
        """Return the columns that samples are read from."""
        return [f.name for f in schema if f.name == self.image or _is_plain(f.type)]


def _holds_images(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):
        return any(part.name == "bytes" and _is_binary(part.type) for part in kind)
    return _is_binary(kind) and field.name.lower() in IMAGE_COLUMNS


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_parquet(
    file: pq.ParquetFile, shard: str, keys: Container[str] | None = None
) -> Iterator[Sample | BadSample]:
    """Yield the samples of a file with images in row order; with `keys`, only these samples."""
    form = ParquetForm.of(file.schema_arrow)
    needed = form.needed(file.schema_arrow)
    batches = file.iter_batches(ROWS_AT_ONCE, columns=needed, use_threads=False)
    return read_rows(_numbered(batches), form, shard, keys)


def _numbered(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Sequence[int], pa.RecordBatch]]:
    start = 0
    for batch in batches:
        yield range(start, start + len(batch)), batch
        start += len(batch)


def read_rows(
    batches: Iterable[tuple[Sequence[int], pa.RecordBatch]],
    form: ParquetForm,
    shard: str,
    keys: Container[str] | None = None,
) -> Iterator[Sample | BadSample]:
    """Yield the samples in batches of rows; each batch comes with its rows' numbers in the shard.

    With `keys`, yields only the samples with these keys.
    """
    seen: set[str] = set()
    for numbers, batch in batches:
        for i, number in enumerate(numbers):
            key = f"{number:0{KEY_DIGITS}d}"
            if keys is not None and key not in keys:
                continue
            try:
                row = batch.slice(i, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:  # for example, text that is not UTF-8
                yield BadSample(key, "bad_row", str(error))
                continue
            yield _sample(row, form, key, shard, seen)


def _sample(
    row: dict[str, Any], form: ParquetForm, key: str, shard: str, seen: set[str]
) -> Sample | BadSample:
    uid = row.get(form.uid) if form.uid else uid_from_path(f"{shard}/{key}")
    if not isinstance(uid, str) or not SAFE_UID.fullmatch(uid):
        return BadSample(key, "bad_uid", f"uid {uid!r:.80}: expected letters, digits, '-' or '_'")
    if uid in seen:
        return BadSample(key, "duplicate_uid", f"uid {uid} occurs more than once in this file")
    seen.add(uid)
    value = row.pop(form.image or "", None)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return BadSample(key, "no_image", f"no bytes in column {form.image!r}")
    if len(data) > MAX_IMAGE_BYTES:
        detail = f"{len(data)} bytes; the limit is {MAX_IMAGE_BYTES}"
        return BadSample(key, "too_many_bytes", detail)
    suffix = _suffix(data, value.get("path") if isinstance(value, dict) else None)
    text = row.get(form.text) if form.text else None
    known = {k: v for k, v in row.items() if isinstance(v, str | int | float | bool) or v is None}
    return Sample(key, uid, data, suffix, text if isinstance(text, str) else None, known)


def _suffix(data: bytes, path: str | None) -> str:
    kind = format_of(data)
    if kind is not None:
        return kind.suffixes[0]
    ending = (path or "").rpartition(".")[2].lower()
    return ending if ending in IMAGE_SUFFIXES else "jpg"


def read_metadata(file: pq.ParquetFile, shard: str) -> pa.Table:
    """Read a file without images into a table with the columns of the index.

    These are the status columns, text, width, height and sha256, and every other column of numbers,
    strings or booleans under its own name.
    """
    schema = file.schema_arrow
    form = ParquetForm.of(schema)
    plain = [f.name for f in schema if _is_plain(f.type)]
    table = file.read(plain, use_threads=False)
    count = len(table)
    numbers = pc.cast(pa.array(range(count), pa.int64()), pa.string())
    keys = pc.utf8_lpad(numbers, KEY_DIGITS, "0")
    if form.uid is None:
        uids = pa.array([uid_from_path(f"{shard}/{key}") for key in keys.to_pylist()])
    else:
        uids = table[form.uid].combine_chunks().cast(pa.string())
    good = pc.fill_null(pc.match_substring_regex(uids, f"^(?:{SAFE_UID.pattern})$"), False)
    nothing = pa.scalar(None, pa.string())
    columns = {
        "uid": pc.if_else(good, uids, nothing),
        "key": keys,
        "status": pc.if_else(good, OK, FAILED),
        "reason": pc.if_else(good, nothing, "bad_uid"),
        "detail": pc.if_else(good, nothing, pc.binary_join_element_wise("uid ", uids, "")),
        "text": table[form.text].cast(pa.string()) if form.text else pa.nulls(count, pa.string()),
        "bytes": pa.nulls(count, pa.int64()),
        "sha256": table["sha256"] if "sha256" in plain else pa.nulls(count, pa.string()),
    }
    for side, names in SIZES.items():
        name = next((f.name for f in table.schema if f.name in names and _is_number(f.type)), None)
        columns[side] = _pixels(table[name]) if name else pa.nulls(count, pa.int32())
    taken = {*columns, form.text, form.uid, *(name for name, _ in STATUS_FIELDS), *RESERVED}
    named = [name for name in plain if name not in taken and name.isidentifier()]
    others = {name: _plain(table[name]) for name in named}
    return pa.table(columns | others)


def _is_plain(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_number(kind) or bool(pa.types.is_boolean(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if _is_text(column.type):
        return column.cast(pa.string())
    # SQL has no 16-bit floats.
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _pixels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert to int32; null for values that cannot be an image's width or height."""
    numbers = column.cast(pa.float64(), safe=False)
    possible = pc.and_(pc.greater(numbers, 0), pc.less(numbers, 2**31))
    kept = pc.if_else(possible, numbers, pa.scalar(None, pa.float64()))
    return pc.floor(kept).cast(pa.int32())
