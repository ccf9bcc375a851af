"""Join the rows of imported files to the samples of a pool, by uid.

Rows with one uid are in one bucket, and buckets are joined one after the other. What was found is
kept by groups of shards. Of few rows all are in memory; else buckets and groups are files, each of
which fits into memory (see Buckets).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from capmix.annotate.buckets import Buckets, neighbours
from capmix.annotate.given import FaultCounts, rows_about

ROWS = 4_000_000  # samples and rows of files in a bucket, and samples in a group, about
SIZE = 1 << 28  # bytes of rows of files in a bucket, and of values in a group, about
SHARD = 32  # bits of the number of a sample below those of its shard
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
    """What the files have for samples of one shard: by sample its position in the shard, how many
    rows have its uid, and the value of the first of these."""

    positions: np.ndarray
    times: np.ndarray
    values: pa.Array

    @property
    def repeated(self) -> int:
        """Rows that have the uid of an earlier one, by sample."""
        return int((self.times - 1).sum())


class Join:
    """First all rows of the files are added, then all samples, shard by shard; then `match`."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        folder: str,
        paths: Sequence[str],
        kind: pa.DataType,
        shards: int,
        samples: int,
    ):
        """Values are of `kind`; the numbers of samples and rows need not be exact."""
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
            self._decide()

    def add_samples(self, shard: int, uids: pa.ChunkedArray, positions: np.ndarray) -> None:
        """Add the samples of a shard that are ok; all shards in their order."""
        if not self._given.count:
            self._decide()
        self._sizes[shard] = len(uids)
        table = pa.table({"uid": uids, "sample": (shard << SHARD) + positions}, schema=SAMPLES)
        self._samples.add(table, self._hashes(uids))

    def match(self, faults: FaultCounts) -> None:
        """Join them, and count the rows that gave no value."""
        weights = np.maximum(self._sizes / ROWS, self._sizes * self._row_size / SIZE)
        self._groups = neighbours(weights, 1.0)
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
        """The number of each shard, in order, with what was found for it."""
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

    def _decide(self) -> None:
        """How many buckets there are: by the rows so far, and by how many there may be."""
        rows, size = self._given.rows, self._given.size
        self._row_size = size / rows if rows else 0.0
        total = max(rows, rows_about(self._paths, self._row_size)) if self._given.is_full else rows
        least = max((self._about + total) / ROWS, total * self._row_size / SIZE)
        self._given.count = self._samples.count = max(1, int(np.ceil(least)))

    def _hashes(self, uids: pa.ChunkedArray) -> np.ndarray:
        """uint64 (uids,): the same for the same uid."""
        if self._given.count == 1:
            return np.zeros(len(uids), np.uint64)
        self._connection.register("uids", pa.table({"uid": uids}))
        found = self._connection.sql("select hash(uid) as hash from uids").fetchnumpy()
        self._connection.unregister("uids")
        return np.asarray(found["hash"])


def _in_order(found: pa.Table) -> pa.Table:
    """Rows by sample. Texts get offsets of 64 bits: together they may have over 2 GiB."""
    values = found["value"]
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
    order = pa.array(np.argsort(found["sample"].to_numpy()))
    return found.set_column(found.num_columns - 1, "value", values).combine_chunks().take(order)
