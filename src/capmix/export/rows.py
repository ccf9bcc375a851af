"""The rows of a subset in pieces: what one output shard holds, whatever the size of the whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.storage.layout import SUBSETS
from capmix.storage.record import FileRecord
from capmix.storage.store import Store


@dataclass
class SubsetRows:
    """A subset read by numbers of copies: a row of weight 3 is three of them.

    It is the one of `fingerprint`, which `pinned` notes: one that is written meanwhile is an error.
    """

    store: Store
    name: str
    fingerprint: str
    record: FileRecord | None

    @classmethod
    def pinned(cls, store: Store, name: str) -> "SubsetRows":
        """The subset as it is now. Raises UserError where there is none."""
        part = f"{SUBSETS}/{name}"
        fingerprint, marker = store.fingerprint(part), store.read_marker(part)
        if marker is None:
            raise UserError(f"no subset {name!r} in {store.location}: run `capmix mix` first")
        return cls(store, name, fingerprint, marker.files.get(f"{part}.parquet"))

    def refuse_changed(self) -> None:
        """Raise UserError where the subset was written again since it was pinned."""
        if self.store.fingerprint(self.part) != self.fingerprint:
            raise UserError(
                f"subset {self.name} was written again while it was read; run the command again"
            )

    @property
    def part(self) -> str:
        return f"{SUBSETS}/{self.name}"

    @property
    def copies(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def between(self, start: int, stop: int) -> pa.Table:
        """The rows that copies `start` to `stop` belong to, with two more columns: `first` is the
        number, among all copies of the sample, of the row's first that is asked for, and `times`
        how many of them are."""
        here = self._rows(start, stop)
        table, ends = self._read(here), self._ends[here]
        begins = ends - table["weight"].to_numpy()
        first = np.maximum(start - begins, 0) + table["copy"].to_numpy()
        times = np.minimum(stop, ends) - np.maximum(start, begins)
        return table.append_column("first", pa.array(first)).append_column("times", pa.array(times))

    def shards(self, start: int, stop: int) -> list[str]:
        """Names of the input shards that copies `start` to `stop` come from, in pool order."""
        names = self._read(self._rows(start, stop), ["shard"])["shard"]
        found: list[str] = pc.unique(names).to_pylist()
        return found

    def shard_names(self) -> list[str]:
        """Names of all input shards that rows come from, in pool order."""
        found: dict[str, None] = {}
        with self.store.open_table(f"{self.part}.parquet", self.record) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, ["shard"], use_threads=False)["shard"]
                found |= dict.fromkeys(pc.unique(names).to_pylist())
        return list(found)

    def of_shard(self, name: str) -> pa.Table:
        """The rows of one input shard, with the columns `first` and `times` (see `between`)."""
        found = []
        with self.store.open_table(f"{self.part}.parquet", self.record) as file:
            column = file.schema_arrow.names.index("shard")
            for group in range(file.num_row_groups):
                bounds = file.metadata.row_group(group).column(column).statistics
                if bounds is None or not bounds.has_min_max or bounds.min <= name <= bounds.max:
                    table = file.read_row_group(group, use_threads=False)
                    found.append(table.filter(pc.equal(table["shard"], name)))
        rows = pa.concat_tables(found)
        return rows.append_column("first", rows["copy"]).append_column("times", rows["weight"])

    def batches(self) -> Iterator[pa.Table]:
        """The whole subset, a row group at a time."""
        with self.store.open_table(f"{self.part}.parquet", self.record) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, use_threads=False)

    @cached_property
    def _ends(self) -> np.ndarray:
        """int64 (rows,): how many copies there are up to the end of each row."""
        weights = self.store.read_table(f"{self.part}.parquet", ["weight"], self.record)["weight"]
        return np.cumsum(weights.to_numpy(), dtype=np.int64)

    def _rows(self, start: int, stop: int) -> slice:
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right")
        return slice(int(first), int(last) + 1)

    def _read(self, rows: slice, columns: list[str] | None = None) -> pa.Table:
        start, stop = rows.start, rows.stop
        found, seen = [], 0
        with self.store.open_table(f"{self.part}.parquet", self.record) as file:
            for group in range(file.num_row_groups):
                here = file.metadata.row_group(group).num_rows
                if seen < stop and seen + here > start:
                    table = file.read_row_group(group, columns, use_threads=False)
                    found.append(table.slice(max(start - seen, 0), stop - max(start, seen)))
                seen += here
        return pa.concat_tables(found)
