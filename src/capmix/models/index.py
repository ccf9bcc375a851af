"""The first stage: list the samples of a pool in `samples/<shard>.parquet`, without pixels.

Columns in addition to the status columns:

- `text`: the raw caption; null if there is none
- `width`, `height`: pixels as stored
- `bytes`, `sha256`: of the image
- `xxh3`: of all files of the sample (see Sample.xxh3)
- `original_width`, `original_height`: pixels before img2dataset resized the image, if the JSON of
  the shard's samples has these fields

For a pool with only metadata, these columns are taken from the metadata where it has them, and its
other columns are added (see parquet.read_metadata). All fields of the JSON are stored beside the
index (see fields.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.stage import PartWriter, Stage
from capmix.models.fields import FieldColumns, write_fields
from capmix.models.images import BadImageError, image_size
from capmix.pool.parquet import read_metadata
from capmix.pool.pool import Pool
from capmix.pool.sample import BadSample, Sample, Shard
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import FAILED, OK, Row, column_names, table_of
from capmix.storage.store import Store

FIELDS = [
    ("text", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("bytes", pa.int64()),
    ("sha256", pa.string()),
    ("xxh3", pa.uint64()),
]
NEW = 1  # the last of FIELDS are new: parts without them stay valid
ORIGINAL_FIELDS = [("original_width", pa.int32()), ("original_height", pa.int32())]


@dataclass
class IndexRows:
    """What the index stores of a shard's samples, in the order in which they were read."""

    rows: list[Row] = field(default_factory=list)
    fields: FieldColumns = field(default_factory=FieldColumns)

    def add(self, sample: Sample | BadSample) -> Row:
        """Add the next sample and return its row."""
        row = _row(sample)
        self.rows.append(row)
        self.fields.add(sample)
        return row

    def write(self, shard: Shard, out: PartWriter) -> None:
        """Write the rows, and the fields as a part of their own."""
        has_original = any(set(row.values[len(FIELDS) :]) - {None} for row in self.rows)
        write_fields(out.draft, shard, self.fields)
        out.write_table(table_of(self.rows, FIELDS + ORIGINAL_FIELDS if has_original else FIELDS))


# Returns what another stage has collected for the index while it read the shard; None if nothing.
Collected = Callable[[Shard, PartWriter], IndexRows | None]


def index_stages(pool: Pool, collected: Collected | None = None) -> list[Stage]:
    """Return the stage that lists a pool's samples.

    It reads the shards for which `collected` has nothing.
    """

    def run_shard(shard: Shard, out: PartWriter) -> None:
        if not pool.has_images:
            _index_metadata(pool, shard, out)
            return
        found = collected(shard, out) if collected else None
        if found is not None:
            for row in found.rows:
                _count(out, row)
        else:
            found = IndexRows()
            for sample in pool.read(shard):
                _count(out, found.add(sample))
        found.write(shard, out)

    return [
        Stage("index", SAMPLES, {}, pool_inputs, run_shard, columns=column_names(FIELDS[:-NEW]))
    ]


def _count(out: PartWriter, row: Row) -> None:
    out.count_in()
    if row.reason:
        out.count_failed(row.reason)
    else:
        out.count_ok()


def _index_metadata(pool: Pool, shard: Shard, out: PartWriter) -> None:
    try:
        with pool.open_parquet(shard) as file:
            table = read_metadata(file, shard.name)
    except (OSError, pa.ArrowException) as error:
        row = Row(None, "", FAILED, "unreadable_shard", f"{pool.files[shard.name][0]}: {error}")
        table = table_of([row], FIELDS)
    failed = pc.sum(pc.equal(table["status"], FAILED)).as_py() or 0
    out.count_in(len(table))
    out.count_ok(len(table) - failed)
    for _ in range(failed):
        out.count_failed("bad_uid" if len(table) > 1 else table["reason"][0].as_py())
    out.write_table(table)


class IndexedBytes(NamedTuple):
    """The digests of a sample in the index. Indexes of capmix 0.1 have only the image's sha256."""

    xxh3: int | None
    sha256: str | None

    def are_of(self, sample: Sample) -> bool:
        """Whether the sample's bytes match the index; true if the index has no digest."""
        if self.xxh3 is not None:
            return self.xxh3 == sample.xxh3
        return self.sha256 in (None, sample.sha256)


def indexed_bytes(store: Store, shard: str) -> dict[str, IndexedBytes]:
    """Return the digests of a shard's ok samples, by key.

    Raises UserError if the shard is not indexed.
    """
    part = f"{SAMPLES}/{shard}.parquet"
    with store.open_table(part) as file:
        have = file.schema_arrow.names
    wanted = [name for name in ("xxh3", "sha256") if name in have][:1]
    table = store.read_table(part, ["key", "status", *wanted])
    table = table.filter(pc.equal(table["status"], OK))
    values = table[wanted[0]].to_pylist() if wanted else [None] * len(table)
    is_xxh3 = wanted == ["xxh3"]
    known = ((value, None) if is_xxh3 else (None, value) for value in values)
    return {
        key: IndexedBytes(*one) for key, one in zip(table["key"].to_pylist(), known, strict=True)
    }


def pool_inputs(shard: Shard) -> dict[str, str]:
    return {"pool": shard.fingerprint}


def bad_row(sample: BadSample) -> Row:
    return Row(None, sample.key, FAILED, sample.reason, sample.detail)


def _row(sample: Sample | BadSample) -> Row:
    if isinstance(sample, BadSample):
        return bad_row(sample)
    try:
        width, height = image_size(sample.image)
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error))
    values = (sample.text, width, height, len(sample.image), sample.sha256, sample.xxh3)
    original = [_pixels(sample.metadata.get(name)) for name, _ in ORIGINAL_FIELDS]
    return Row(sample.uid, sample.key, values=(*values, *original))


def _pixels(value: Any) -> int | None:
    """Return a whole number in the range of int32; None for anything else."""
    is_whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    return int(value) if is_whole and 0 <= value < 2**31 else None
