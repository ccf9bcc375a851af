"""Subsets: rows that refer to samples and texts, read in pieces, with their texts.

`subsets/<name>.parquet` has shard, row (the sample's number in the shard's index), source, k,
score, weight (how often the row counts) and copy (how much the sample's earlier rows weigh); with
`mix --texts`, and where texts are shuffled, also uid, key and text. Rows lie in pool order.
`subsets/.shards/<name>.parquet` has, for each shard that rows come from, how many rows and copies
there are, and the fingerprints of the parts that they refer to. Subsets of capmix 0.1 hold their
texts, and have no such table.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.engine.local import cores
from capmix.engine.prefetch import prefetched
from capmix.errors import UserError
from capmix.pool import Pool
from capmix.score.array import PinnedParts, places
from capmix.storage.draft import parquet_options
from capmix.storage.layout import MARKERS, RAW, SAMPLES, SUBSETS, texts_folder
from capmix.storage.record import FileRecord
from capmix.storage.store import READERS, Store
from capmix.storage.temporary import remove_temporary, temporary_name

WORD = pa.dictionary(pa.int32(), pa.string())  # as it is written; readers get plain strings
REFERENCES = [
    ("shard", WORD),
    ("row", pa.int32()),
    ("source", WORD),
    ("k", pa.int32()),
    ("score", pa.float32()),
    ("weight", pa.int32()),
    ("copy", pa.int32()),
]
TEXTS = [("uid", pa.string()), ("key", pa.string()), ("text", pa.string())]
RESOLVED = ("uid", "shard", "key", "source", "k", "text", "score", "weight", "copy")
OF_SHARD = ("shard", "rows", "copies")  # beside the fingerprints, by folder
ROWS_AT_ONCE = 100_000


def subset_file(name: str) -> str:
    """The rows of a subset."""
    return f"{SUBSETS}/{name}.parquet"


def shards_file(name: str) -> str:
    """What it says of each shard. No name of a subset begins with a dot."""
    return f"{SUBSETS}/.shards/{name}.parquet"


def texts_of(
    store: Store,
    pinned: PinnedParts,
    shard: str,
    row: np.ndarray,
    k: np.ndarray,
    source: Mapping[str, np.ndarray],
    with_text: bool = True,
) -> pa.Table:
    """uid, key and text of N rows of a shard: `row` and `k`, int (N,), and for each source which of
    them are of it, bool (N,). A text that is not there is empty. Without texts, the uid alone."""
    read = partial(pinned.read, store)
    if not with_text:
        return read(f"{SAMPLES}/{shard}", "uid").take(pa.array(row))
    has_raw = RAW in source and bool(source[RAW].any())
    index = read(f"{SAMPLES}/{shard}", "uid", "key", *(["text"] if has_raw else []))
    at = pa.array(row)
    found = {"uid": index["uid"].take(at), "key": index["key"].take(at)}
    uids = index["uid"].combine_chunks()
    texts: list[pa.Array] = []
    order: list[np.ndarray] = []
    for name, of_source in source.items():
        here = np.flatnonzero(of_source)
        order.append(here)
        if not len(here):
            continue
        if name == RAW:
            texts += index["text"].take(pa.array(row[here])).chunks
            continue
        part = read(f"{texts_folder(name)}/{shard}", "uid", "k", "text")
        place = _place_of(uids, part, row[here], k[here])
        texts += part["text"].take(pa.array(place, mask=place < 0)).chunks
    text = pa.chunked_array(texts, pa.string()).combine_chunks()
    back = np.empty(len(row), np.int64)
    back[np.concatenate(order)] = np.arange(len(row))
    found["text"] = pc.fill_null(text.take(pa.array(back)), "")
    return pa.table(found)


def _place_of(uids: pa.Array, part: pa.Table, row: np.ndarray, k: np.ndarray) -> np.ndarray:
    """int64 (N,): where captions `k` of samples `row` of an index lie in a part; -1: nowhere."""
    known = places(uids, part, np.ones(len(part), bool))
    found = np.full(len(row), -1, np.int64)
    for number in np.unique(k):
        of_number = np.flatnonzero(known.k == number)[::-1]
        place = np.full(len(uids), -1, np.int64)
        place[known.row[of_number]] = known.place[of_number]  # of equal ones the first
        place = place if known.same is None else place[known.same]
        asked = k == number
        found[asked] = place[row[asked]]
    return found


@dataclass
class SubsetRows:
    """A subset read by numbers of copies: a row of weight 3 is three of them.

    It is the one of `fingerprint`, which `pinned` notes: one that is written meanwhile is an error.
    `records` are those of its files.
    """

    store: Store
    name: str
    fingerprint: str
    records: Mapping[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def pinned(cls, store: Store, name: str) -> "SubsetRows":
        """The subset as it is now. Raises UserError where there is none."""
        part = f"{SUBSETS}/{name}"
        fingerprint, marker = store.fingerprint_and_marker(part)
        if marker is None:
            raise UserError(f"no subset {name!r} in {store.location}: run `capmix mix` first")
        return cls(store, name, fingerprint, marker.files)

    def refuse_changed(self) -> None:
        """Raise UserError where the subset was written again since it was pinned."""
        if self.store.fingerprint(self.part) != self.fingerprint:
            raise UserError(
                f"subset {self.name} was written again while it was read; run the command again"
            )

    def refuse_stale(self) -> None:
        """Raise UserError where it refers to samples or texts that were written again, before
        anything else is done with it. One that has its texts refers to samples alone."""
        folders = [name for name in self._table.column_names if name not in OF_SHARD]
        if self._rows_file.has_texts:  # a uid can be made of a path: another picture may have it
            folders = [name for name in folders if name == SAMPLES]
        with self.store.listed(folders):
            for folder in folders:
                for shard, known in zip(self._names, self._table[folder].to_pylist(), strict=True):
                    if self.store.fingerprint(f"{folder}/{shard}") != known:
                        raise self._stale(folder, shard)

    def refuse_gone(self, pool: Pool) -> None:
        """Raise UserError where the pool lacks a shard that rows come from."""
        known = {shard.name for shard in pool.shards}
        gone = [name for name in self._names if name not in known]
        if gone:
            raise UserError(
                f"pool {pool.location} has no shard {gone[0]} that the subset {self.name} takes "
                f"samples from ({len(gone)} are gone). Bring them back or mix again."
            )

    def _stale(self, folder: str, shard: str) -> UserError:
        return UserError(
            f"subset {self.name} refers to {self.store.path(folder)}, of which shard {shard} was "
            f"written again or is gone. Run `capmix mix --out {self.name}` again, with the recipe "
            f"and options that {MARKERS}/{self.part}.json has"
        )

    @property
    def part(self) -> str:
        return f"{SUBSETS}/{self.name}"

    @property
    def copies(self) -> int:
        return int(self._copies[-1])

    def between(self, start: int, stop: int) -> pa.Table:
        """The rows that copies `start` to `stop` belong to, with two more columns: `first` is the
        number, among all copies of the sample, of the row's first that is asked for, and `times`
        how many of them are."""
        numbers = self._numbers(start, stop)
        table = pa.concat_tables(self._of_numbers(numbers.start, numbers.stop))
        ends = self._copies[numbers.start] + np.cumsum(table["weight"].to_numpy(), dtype=np.int64)
        begins = ends - table["weight"].to_numpy()
        first = np.maximum(start - begins, 0) + table["copy"].to_numpy()
        times = np.minimum(stop, ends) - np.maximum(start, begins)
        both = table.append_column("first", pa.array(first))
        return both.append_column("times", pa.array(times)).filter(pa.array(times > 0))

    def shards(self, start: int, stop: int) -> list[str]:
        """Names of the input shards that copies `start` to `stop` come from, in pool order."""
        return [self._names[number] for number in self._numbers(start, stop)]

    def shard_names(self) -> list[str]:
        """Names of all input shards that rows come from, in pool order."""
        return list(self._names)

    def of_shard(self, name: str) -> pa.Table:
        """The rows of one input shard, with the columns `first` and `times` (see `between`)."""
        rows = self._of_number(self._number[name])
        return rows.append_column("first", rows["copy"]).append_column("times", rows["weight"])

    def sources_of(self, shard: str) -> pa.Table:
        """`uid` and `source` of the rows of one input shard; no text is read."""
        if shard not in self._number:
            return pa.table({"uid": pa.array([], pa.string()), "source": pa.array([], pa.string())})
        return self._of_number(self._number[shard], with_text=False).select(["uid", "source"])

    def batches(self) -> Iterator[pa.Table]:
        """The whole subset, whole shards at a time, some ROWS_AT_ONCE rows; a few are read ahead,
        in threads."""
        threads = cores() if self.store.is_local else READERS
        for _, found in prefetched(self._ranges(), self._of_range, threads, threads + 1):
            yield found.result()

    def _ranges(self) -> Iterator[tuple[int, int]]:
        begin, last = 0, len(self._names)
        while begin < last:
            enough = self._rows[begin] + ROWS_AT_ONCE
            end = min(last, max(begin + 1, int(np.searchsorted(self._rows, enough))))
            yield begin, end
            begin = end

    def _of_range(self, shards: tuple[int, int]) -> pa.Table:
        return pa.concat_tables(self._of_numbers(*shards))

    @cached_property
    def _table(self) -> pa.Table:
        """One row a shard; see the head of this file."""
        file = shards_file(self.name)
        if file in self.records:
            try:
                return self.store.read_table(file, None, self.records[file])
            except UserError:
                self.refuse_changed()
                raise
        rows = self.store.read_table(subset_file(self.name), ["shard", "weight"], self._record)
        counted = rows.group_by("shard", use_threads=False)
        found = counted.aggregate([("weight", "count"), ("weight", "sum")])
        return found.rename_columns(["shard", "rows", "copies"])

    @property
    def _record(self) -> FileRecord | None:
        return self.records.get(subset_file(self.name))

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = self._table["shard"].to_pylist()
        return names

    @cached_property
    def _number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self._names)}

    @cached_property
    def _rows(self) -> np.ndarray:
        """int64 (shards + 1,): how many rows lie before each shard, and all of them."""
        return _before(self._table["rows"])

    @cached_property
    def _copies(self) -> np.ndarray:
        """The same of copies."""
        return _before(self._table["copies"])

    def _numbers(self, start: int, stop: int) -> range:
        """Numbers of the shards that copies come from."""
        first, last = np.searchsorted(self._copies, [start, stop - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def _of_number(self, number: int, with_text: bool = True) -> pa.Table:
        return self._of_numbers(number, number + 1, with_text)[0]

    def _of_numbers(self, begin: int, end: int, with_text: bool = True) -> list[pa.Table]:
        """RESOLVED of each of some shards that lie one behind the other."""
        rows = self._read(int(self._rows[begin]), int(self._rows[end]))
        starts = self._rows - self._rows[begin]
        found = []
        for number in range(begin, end):
            here = rows.slice(starts[number], starts[number + 1] - starts[number])
            if "uid" not in here.column_names:
                texts = self._texts(number, here, with_text)
                for name in texts.column_names:
                    here = here.append_column(name, texts[name])
            elif SAMPLES in self._table.column_names:
                self._pinned(number, [SAMPLES])
            found.append(here.select([one for one in RESOLVED if one in here.column_names]))
        return found

    def _texts(self, number: int, rows: pa.Table, with_text: bool) -> pa.Table:
        of_rows = rows["source"]
        sources = pc.unique(of_rows).to_pylist()
        wanted = {one: pc.equal(of_rows, one).to_numpy() for one in sources}
        row, k = rows["row"].to_numpy(), rows["k"].to_numpy()
        folders = [SAMPLES, *(texts_folder(one) for one in sources if with_text)]
        pinned = self._pinned(number, folders)
        try:
            return texts_of(self.store, pinned, self._names[number], row, k, wanted, with_text)
        except UserError:
            self._pinned(number, folders)  # another run may have written a part meanwhile
            raise

    def _pinned(self, number: int, folders: Sequence[str]) -> PinnedParts:
        """Raises UserError where a part is not the one that the subset refers to."""
        shard = self._names[number]
        records: dict[str, FileRecord | None] = {}
        prints: dict[str, str] = {}
        for folder in dict.fromkeys(folders):
            part = f"{folder}/{shard}"
            known = self._table[folder][number].as_py()
            digest, marker = self.store.fingerprint_and_marker(part)
            if marker is None or digest != known:
                raise self._stale(folder, shard)
            records |= {f"{part}.parquet": marker.files.get(f"{part}.parquet")}
            prints[part] = known
        return PinnedParts(prints.__getitem__, records.__getitem__)

    def _read(self, start: int, stop: int) -> pa.Table:
        """Rows as they are written."""
        try:
            return self._rows_file.read(start, stop)
        except UserError:
            self.refuse_changed()
            raise

    @cached_property
    def _rows_file(self) -> "_RowsFile":
        return _RowsFile(self.store, subset_file(self.name), self._record)

    def __getstate__(self) -> dict[str, Any]:
        """What was read or opened stays in this process."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class _RowsFile:
    """A parquet file that is opened once: of a large one, its footer alone takes 20 ms."""

    def __init__(self, store: Store, name: str, record: FileRecord | None):
        self._open = store.open_table(name, record)
        self._file = self._open.__enter__()
        self.has_texts = "text" in self._file.schema_arrow.names
        about = self._file.metadata
        counts = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._last: tuple[int, pa.Table] | None = None
        self._lock = Lock()  # a reader is for one thread at a time

    def read(self, start: int, stop: int) -> pa.Table:
        """Some of its rows. The row group that was read last is kept."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        with self._lock:
            found = [self._group(group) for group in range(first, max(last, first + 1))]
        return pa.concat_tables(found).slice(start - int(self._starts[first]), stop - start)

    def _group(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            self._last = group, self._file.read_row_group(group, use_threads=False)
        return self._last[1]


def write_parquet(rows: SubsetRows, path: str) -> int:
    """Write a subset with its texts as one parquet file for other tools, some rows at a time;
    returns how many rows there are. Raises UserError where it cannot be written."""
    written = 0
    beside = f"{path}.{temporary_name()}"
    try:
        with open(beside, "wb") as stream:
            writer: pq.ParquetWriter | None = None
            for table in rows.batches():
                options = parquet_options(table.schema)
                writer = writer or pq.ParquetWriter(stream, table.schema, **options)
                writer.write_table(table)
                written += len(table)
            if writer is not None:
                writer.close()
        rows.refuse_changed()
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        remove_temporary(beside)
    return written


def _before(counts: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts.to_numpy(), dtype=np.int64)])
