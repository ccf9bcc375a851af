"""Subsets: rows that refer to samples and texts, read in pieces together with their texts.

`subsets/<name>.parquet` has the columns shard, row (of the sample in the shard's index), source, k,
score, weight (how often the row counts) and copy (total weight of the sample's earlier rows). With
`mix --texts`, and if texts are shuffled or composed, it also has uid, key and text. Rows are in
pool order. `subsets/.shards/<name>.parquet` has one row for each shard that the subset uses: its
number of rows and copies, and the fingerprints of the parts that the rows refer to. Subsets of
capmix 0.1 contain their texts and have no such table.
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

WORD = pa.dictionary(pa.int32(), pa.string())  # only for writing; readers get plain strings
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
OF_SHARD = ("shard", "rows", "copies")  # all other columns are fingerprints, one per folder
ROWS_AT_ONCE = 100_000


def subset_file(name: str) -> str:
    """Return the file with the rows of a subset."""
    return f"{SUBSETS}/{name}.parquet"


def shards_file(name: str) -> str:
    """Return the file with a subset's table of shards. Names of subsets never begin with a dot."""
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
    """Read uid, key and text of N rows of a shard, or only the uid if `with_text` is False.

    `row` and `k` are int (N,); `source` maps each source to a mask of its rows, bool (N,). Missing
    texts are empty.
    """
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
    """Return the row in `part` of caption `k` of each sample `row`, int64 (N,); -1 if absent."""
    known = places(uids, part, np.ones(len(part), bool))
    found = np.full(len(row), -1, np.int64)
    for number in np.unique(k):
        of_number = np.flatnonzero(known.k == number)[::-1]
        place = np.full(len(uids), -1, np.int64)
        place[known.row[of_number]] = known.place[of_number]  # the first of duplicates
        place = place if known.same is None else place[known.same]
        asked = k == number
        found[asked] = place[row[asked]]
    return found


@dataclass
class SubsetRows:
    """Reads a subset by copy number: a row of weight 3 is three copies.

    It reads the version with this `fingerprint`, which `pinned` records; a subset that is rewritten
    meanwhile is an error. `records` are the records of its files.
    """

    store: Store
    name: str
    fingerprint: str
    records: Mapping[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def pinned(cls, store: Store, name: str) -> "SubsetRows":
        """Pin the current version of a subset. Raises UserError if it does not exist."""
        part = f"{SUBSETS}/{name}"
        fingerprint, marker = store.fingerprint_and_marker(part)
        if marker is None:
            raise UserError(f"no subset {name!r} in {store.location}: run `capmix mix` first")
        return cls(store, name, fingerprint, marker.files)

    def refuse_changed(self) -> None:
        """Raise UserError if the subset was rewritten after it was pinned."""
        if self.store.fingerprint(self.part) != self.fingerprint:
            raise UserError(
                f"subset {self.name} was rewritten while it was being read; rerun the command"
            )

    def refuse_stale(self) -> None:
        """Raise UserError if the subset refers to samples or texts that were rewritten; call this
        before using the subset. A subset that contains its texts refers only to samples."""
        folders = [name for name in self._table.column_names if name not in OF_SHARD]
        if self._rows_file.has_texts:  # a uid can be derived from a path, whose image may change
            folders = [name for name in folders if name == SAMPLES]
        with self.store.listed(folders):
            for folder in folders:
                for shard, known in zip(self._names, self._table[folder].to_pylist(), strict=True):
                    if self.store.fingerprint(f"{folder}/{shard}") != known:
                        raise self._stale(folder, shard)

    def refuse_gone(self, pool: Pool) -> None:
        """Raise UserError if the pool lacks a shard that the subset uses."""
        known = {shard.name for shard in pool.shards}
        gone = [name for name in self._names if name not in known]
        if gone:
            raise UserError(
                f"subset {self.name} uses shard {gone[0]}, which is not in pool {pool.location} "
                f"({len(gone)} missing). Restore the shards or rerun `capmix mix`."
            )

    def _stale(self, folder: str, shard: str) -> UserError:
        return UserError(
            f"subset {self.name} refers to {self.store.path(folder)}, whose shard {shard} was "
            f"rewritten or removed. Rerun `capmix mix --out {self.name}` with the recipe and "
            f"options in {MARKERS}/{self.part}.json"
        )

    @property
    def part(self) -> str:
        return f"{SUBSETS}/{self.name}"

    @property
    def copies(self) -> int:
        return int(self._copies[-1])

    def between(self, start: int, stop: int) -> pa.Table:
        """Return the rows of copies `start` to `stop` (exclusive), with two more columns.

        `times` is how many of a row's copies are in this range; `first` is the number of the first
        of these among all copies of the sample.
        """
        numbers = self._numbers(start, stop)
        table = pa.concat_tables(self._of_numbers(numbers.start, numbers.stop))
        ends = self._copies[numbers.start] + np.cumsum(table["weight"].to_numpy(), dtype=np.int64)
        begins = ends - table["weight"].to_numpy()
        first = np.maximum(start - begins, 0) + table["copy"].to_numpy()
        times = np.minimum(stop, ends) - np.maximum(start, begins)
        both = table.append_column("first", pa.array(first))
        return both.append_column("times", pa.array(times)).filter(pa.array(times > 0))

    def shards(self, start: int, stop: int) -> list[str]:
        """Return the names of the input shards of copies `start` to `stop`, in pool order."""
        return [self._names[number] for number in self._numbers(start, stop)]

    def shard_names(self) -> list[str]:
        """Return the names of all input shards with rows in the subset, in pool order."""
        return list(self._names)

    def of_shard(self, name: str) -> pa.Table:
        """Return the rows of one input shard, with the columns `first` and `times` (see
        `between`)."""
        rows = self._of_number(self._number[name])
        return rows.append_column("first", rows["copy"]).append_column("times", rows["weight"])

    def sources_of(self, shard: str) -> pa.Table:
        """Return uid and source of the rows of one input shard, without reading texts."""
        if shard not in self._number:
            return pa.table({"uid": pa.array([], pa.string()), "source": pa.array([], pa.string())})
        return self._of_number(self._number[shard], with_text=False).select(["uid", "source"])

    def batches(self) -> Iterator[pa.Table]:
        """Yield the whole subset in batches of complete shards, about ROWS_AT_ONCE rows each.
        Threads read a few batches ahead."""
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
        """The table of shards (see the module docstring), one row per shard."""
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
        """The number of rows before each shard, then the total: int64 (shards + 1,)."""
        return _before(self._table["rows"])

    @cached_property
    def _copies(self) -> np.ndarray:
        """The number of copies before each shard, then the total: int64 (shards + 1,)."""
        return _before(self._table["copies"])

    def _numbers(self, start: int, stop: int) -> range:
        """Return the numbers of the shards of copies `start` to `stop`."""
        first, last = np.searchsorted(self._copies, [start, stop - 1], side="right") - 1
        return range(int(first), int(last) + 1)

    def _of_number(self, number: int, with_text: bool = True) -> pa.Table:
        return self._of_numbers(number, number + 1, with_text)[0]

    def _of_numbers(self, begin: int, end: int, with_text: bool = True) -> list[pa.Table]:
        """Return the RESOLVED columns of each of the shards `begin` to `end` (exclusive)."""
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
            self._pinned(number, folders)  # raises if another run rewrote a part meanwhile
            raise

    def _pinned(self, number: int, folders: Sequence[str]) -> PinnedParts:
        """Return the parts of a shard that the subset refers to. Raises UserError if one of them
        was rewritten."""
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
        """Read rows without resolving references."""
        try:
            return self._rows_file.read(start, stop)
        except UserError:
            self.refuse_changed()
            raise

    @cached_property
    def _rows_file(self) -> "_RowsFile":
        return _RowsFile(self.store, subset_file(self.name), self._record)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out cached tables and open files."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


class _RowsFile:
    """A Parquet file that stays open: reading the footer of a large one takes 20 ms."""

    def __init__(self, store: Store, name: str, record: FileRecord | None):
        self._open = store.open_table(name, record)
        self._file = self._open.__enter__()
        self.has_texts = "text" in self._file.schema_arrow.names
        about = self._file.metadata
        counts = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._last: tuple[int, pa.Table] | None = None
        self._lock = Lock()  # ParquetFile is not thread-safe

    def read(self, start: int, stop: int) -> pa.Table:
        """Read rows `start` to `stop` (exclusive). The last row group is cached."""
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
    """Write a subset with its texts as one Parquet file for other tools, in batches.

    Returns the number of rows. Raises UserError if the file cannot be written.
    """
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
