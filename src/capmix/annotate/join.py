"""Join the rows of imported files to the samples of a pool, by uid.

Rows are partitioned into buckets by uid, and the buckets are joined one after the other. The
results are partitioned by groups of shards. Small imports are kept in memory; otherwise each bucket
and each group is a file that fits in memory (see Buckets).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from capmix.annotate.buckets import Buckets, group_adjacent
from capmix.annotate.given import FaultCounts, estimated_rows

ROWS = 4_000_000  # approximate number of rows and samples per bucket, and of samples per group
SIZE = 1 << 28  # approximate bytes of rows per bucket, and of values per group
SHARD = 32  # low bits of a sample's number: its position; the high bits are its shard's number
SAMPLES = pa.schema({"uid": pa.string(), "sample": pa.int64()})
MATCHED = """
create or replace temp table matched as
select g.place, g.uid, g.value, g.is_bad, s.sample from given g left join samples s on g.uid = s.uid
"""
FIRSTS = """
create or replace temp table firsts as
select sample, min(place) as place, count(*) as times from matched
where sample is not null group by sample
"""
FOUND = """
select f.sample, f.times, m.value from matched m
join firsts f on m.sample = f.sample and m.place = f.place
"""


@dataclass(frozen=True)
class Joined:
    """The result for the samples of one shard that occur in the files.

    For each sample: its position in the shard, the number of rows with its uid, and the value of
    the first of these rows.
    """

    positions: np.ndarray
    times: np.ndarray
    values: pa.Array

    @property
    def repeated(self) -> int:
        """Number of rows with the uid of an earlier row, counted for each sample."""
        return int((self.times - 1).sum())


class Join:
    """A join of rows and samples.

    Add all rows of the files first, then all samples, shard by shard; then call `match`.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        folder: str,
        paths: Sequence[str],
        kind: pa.DataType,
        shards: int,
        samples: int,
    ):
        """Set up a join. `kind` is the type of the values; `samples` may be an estimate."""
        self._connection, self._folder, self._paths = connection, folder, paths
        given = {"place": pa.int64(), "uid": pa.string(), "value": kind, "is_bad": pa.bool_()}
        found = {"sample": pa.int64(), "times": pa.int64(), "value": kind}
        self._given = Buckets(f"{folder}/given", pa.schema(given))
        self._samples = Buckets(f"{folder}/samples", SAMPLES)
        self._found = Buckets(f"{folder}/found", pa.schema(found))
        self._sizes = np.zeros(shards, np.int64)
        self._about, self._kind = samples, kind
        self._row_size = 0.0

    def add_given(self, table: pa.Table) -> None:
        """Add rows of files: place, uid, value and is_bad, as read_given yields them."""
        self._given.add(table, self._hashes(table["uid"]))
        if self._given.is_full and not self._given.count:
            self._set_bucket_count()

    def add_samples(self, shard: int, uids: pa.ChunkedArray, positions: np.ndarray) -> None:
        """Add the ok samples of a shard. Shards must be added in order."""
        if not self._given.count:
            self._set_bucket_count()
        self._sizes[shard] = len(uids)
        table = pa.table({"uid": uids, "sample": (shard << SHARD) + positions}, schema=SAMPLES)
        self._samples.add(table, self._hashes(uids))

    def match(self, faults: FaultCounts) -> None:
        """Join rows and samples, and count the rows without a usable value."""
        weights = np.maximum(self._sizes / ROWS, self._sizes * self._row_size / SIZE)
        self._groups = group_adjacent(weights, 1.0)
        self._found.count = int(self._groups.max(initial=0)) + 1
        for number in range(self._given.count):
            self._connection.register("given", self._given.take(number))
            self._connection.register("samples", self._samples.take(number))
            self._connection.execute(MATCHED)
            self._connection.unregister("given")
            self._connection.unregister("samples")
            self._connection.execute(FIRSTS)
            faults.add(self._connection)
            found = self._connection.sql(FOUND).to_arrow_table()
            self._found.add(found, self._groups[found["sample"].to_numpy() >> SHARD])
        self._connection.execute("drop table if exists matched")
        self._connection.execute("drop table if exists firsts")

    def by_shard(self) -> Iterator[tuple[int, Joined]]:
        """Yield the number of each shard, in order, with its result."""
        for group in range(self._found.count):
            table = _in_order(self._found.take(group))
            samples, times = table["sample"].to_numpy(), table["times"].to_numpy()
            values = table["value"].combine_chunks()
            shards = np.flatnonzero(self._groups == group)
            bounds = np.searchsorted(samples >> SHARD, [*shards, len(self._groups)])
            for shard, start, end in zip(shards, bounds, bounds[1:], strict=False):
                positions = samples[start:end] & ((1 << SHARD) - 1)
                chosen = values[start:end].cast(self._kind)
                yield int(shard), Joined(positions, times[start:end], chosen)

    def _set_bucket_count(self) -> None:
        """Set the number of buckets, from the rows read so far and the estimated total."""
        rows, size = self._given.rows, self._given.size
        self._row_size = size / rows if rows else 0.0
        total = rows
        if self._given.is_full:
            total = max(rows, estimated_rows(self._paths, self._row_size))
        least = max((self._about + total) / ROWS, total * self._row_size / SIZE)
        self._given.count = self._samples.count = max(1, int(np.ceil(least)))

    def _hashes(self, uids: pa.ChunkedArray) -> np.ndarray:
        """Return a hash of each uid, uint64 (uids,)."""
        if self._given.count == 1:
            return np.zeros(len(uids), np.uint64)
        self._connection.register("uids", pa.table({"uid": uids}))
        found = self._connection.sql("select hash(uid) as hash from uids").fetchnumpy()
        self._connection.unregister("uids")
        return np.asarray(found["hash"])


def _in_order(found: pa.Table) -> pa.Table:
    """Sort rows by sample. Texts get 64-bit offsets, as they may exceed 2 GiB in total."""
    values = found["value"]
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
    order = pa.array(np.argsort(found["sample"].to_numpy()))
    return found.set_column(found.num_columns - 1, "value", values).combine_chunks().take(order)
