"""Read pools of parquet files: with images as Hugging Face datasets keeps them, or metadata alone.

A file is a shard and a row a sample, keyed by its number. The image column is the first struct
with a field `bytes`, or a binary column named as images are; the text is `text` or `caption`. Of
the other columns, those of texts, numbers and truth values are the sample's metadata. A
file without images (DataComp's metadata) can be mixed, to select before anything is downloaded.
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
ROWS_AT_ONCE = 16  # a few bytes of parquet can stand for images of the largest size allowed
KEY_DIGITS = 9
RESERVED = ("shard", "draw", "repeat_draw")  # what recipes have of their own


@dataclass(frozen=True)
class ParquetForm:
    """Which columns hold what; None where there is none."""

    image: str | None
    text: str | None
    uid: str | None

    @classmethod
    def of(cls, schema: pa.Schema) -> "ParquetForm":
        """Raises ArrowInvalid where two columns have one name: neither can be read by it."""
        name, times = next(iter(Counter(schema.names).most_common(1)), ("", 0))
        if times > 1:
            raise pa.ArrowInvalid(
                f"{times} columns are called {name!r:.80}; expected one of a name"
            )
        image = next((f.name for f in schema if _holds_images(f)), None)
        words = [f.name for f in schema if _is_text(f.type)]
        text = next((name for name in TEXT_COLUMNS if name in words), None)
        return cls(image, text, "uid" if "uid" in words else None)

    def needed(self, schema: pa.Schema) -> list[str]:
        """The columns that samples are read from."""
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
    """The samples of one file with images, or those with `keys` alone, in the order of its rows."""
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
    """The samples of batches of rows, each with the rows' numbers in the shard."""
    seen: set[str] = set()
    for numbers, batch in batches:
        for i, number in enumerate(numbers):
            key = f"{number:0{KEY_DIGITS}d}"
            if keys is not None and key not in keys:
                continue
            try:
                row = batch.slice(i, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:  # text that is no UTF-8, for instance
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
        return BadSample(key, "duplicate_uid", f"uid {uid} stands in this file more than once")
    seen.add(uid)
    value = row.pop(form.image or "", None)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return BadSample(key, "no_image", f"no bytes in column {form.image!r}")
    if len(data) > MAX_IMAGE_BYTES:
        return BadSample(key, "too_many_bytes", f"{len(data)} bytes; {MAX_IMAGE_BYTES} are read")
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
    """The rows of a file without images, as the index keeps them: status columns, text, width and
    height, sha256, and every other column of numbers, words or truth values under its own name."""
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
    # SQL has no numbers of 16 bits.
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _pixels(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int32; null for what no image is wide or high."""
    numbers = column.cast(pa.float64(), safe=False)
    possible = pc.and_(pc.greater(numbers, 0), pc.less(numbers, 2**31))
    kept = pc.if_else(possible, numbers, pa.scalar(None, pa.float64()))
    return pc.floor(kept).cast(pa.int32())
