"""What a recipe needs of some shards at a time: the columns that it names, and where its texts are.

Scores come as raw arrays (score/array.py), which also say which samples are ok and have a text.
Tables are read for other columns alone, and only those columns of them.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.mix.columns import BEST, FIRST, Column, one_array, read_samples
from capmix.mix.expression import LIST_COLUMN
from capmix.mix.kinds import cast_to
from capmix.mix.parts import Parts
from capmix.mix.uids import UidList
from capmix.score.array import ScoreArray, read_array
from capmix.storage.layout import SAMPLES, SCORES
from capmix.storage.rows import OK
from capmix.storage.store import Store

TEXT = "\0{}"  # no expression can name it


@dataclass(frozen=True)
class SourceTexts:
    """One text of each of N samples: whether there is one (bool), the number of the caption
    (int32), and its score (float32, NaN for none)."""

    is_there: np.ndarray
    k: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class SampleBatch:
    """The N samples of some `shards` that are ok, in pool order.

    `table` has the columns that were asked for; `shard` numbers the shards from 0, and `row` is the
    number of a sample in the index of its shard, both int32. `texts` are by source.
    """

    shards: Sequence[str]
    table: pa.Table
    shard: np.ndarray
    row: np.ndarray
    texts: Mapping[str, SourceTexts] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class BatchReader:
    """Reads batches. `columns` are all that a recipe could ask for, `kinds` the types of those that
    shards may have in several (see kinds.py), `lists` the uid lists."""

    store: Store
    parts: Parts
    columns: Mapping[str, Column]
    kinds: Mapping[str, pa.DataType]
    lists: Mapping[str, UidList]

    def read(
        self, shards: Sequence[str], names: Collection[str], sources: Iterable[str] = ()
    ) -> SampleBatch:
        """The columns of these `names`, and the texts of these `sources`, which clauses name."""
        sources = list(sources)
        found = [_ShardReader(self, shard).read(names, sources) for shard in shards]
        counts = [len(one.row) for one in found]
        table = pa.concat_tables((one.table for one in found), promote_options="permissive")
        table = table.combine_chunks()
        numbers = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        if "shard" in names:
            of_table = pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(shards))
            table = table.append_column("shard", of_table)
        for name, uids in self.lists.items():
            if LIST_COLUMN.format(name) in names:
                times = pa.array(uids.times(one_array(table["uid"])))
                table = table.append_column(LIST_COLUMN.format(name), times)
        texts = {}
        for source in sources:
            parts = zip(*(one.texts[source] for one in found), strict=True)
            texts[source] = SourceTexts(*map(np.concatenate, parts))
        return SampleBatch(
            shards, table, numbers, np.concatenate([one.row for one in found]), texts
        )

    def of_scores(self, shards: Sequence[str], column: Column) -> np.ndarray:
        """float32 (N,): a column of scores of the samples that are ok, NaN for none."""
        found = []
        for shard in shards:
            reader = _ShardReader(self, shard)
            values = reader.scores(column)
            ok = reader.ok()
            found.append(values if ok is None else values[ok])
        return np.concatenate(found)


def is_score(column: Column | None) -> bool:
    """Whether a column is read as an array."""
    return column is not None and column.folder.startswith(f"{SCORES}/") and column.field == "score"


@dataclass(frozen=True)
class _Read:
    """What is read of one shard; texts as in SourceTexts."""

    table: pa.Table
    row: np.ndarray
    texts: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


class _ShardReader:
    """One shard; each array is read once."""

    def __init__(self, reader: BatchReader, shard: str):
        self._of, self._shard = reader, shard
        self._arrays: dict[str, ScoreArray] = {}

    def read(self, names: Collection[str], sources: Sequence[str]) -> _Read:
        columns = self._of.columns
        arrays = {name: columns[name] for name in names if is_score(columns.get(name))}
        plain = {name: columns[name] for name in names if name in columns and name not in arrays}
        unscored = [one for one in sources if not is_score(columns.get(f"{one}_score"))]
        plain |= {TEXT.format(one): columns[f"{one}_text"] for one in unscored}
        scores = {name: self.scores(column) for name, column in arrays.items()}
        scored = {one: self._scored(one) for one in sources if one not in unscored}
        ok = self.ok()
        tables = self._table(names, plain)
        row = self._rows(ok)
        found: dict[str, Any] = {
            name: pa.array(part, mask=np.isnan(part))
            for name, values in scores.items()
            for part in [values if ok is None else values[ok]]
        }
        texts = {
            one: tuple(part if ok is None else part[ok] for part in parts)
            for one, parts in scored.items()
        }
        for one in unscored:
            is_there = pc.is_valid(tables[TEXT.format(one)]).to_numpy()
            k = np.full(len(is_there), max(columns[f"{one}_text"].pick or 0, 0), np.int32)
            texts[one] = is_there, k, np.full(len(is_there), np.nan, np.float32)
        kept = {name: tables[name] for name in tables.column_names if name[:1] != TEXT[:1]}
        if not kept and not found:  # a table of no columns has no rows
            found["nothing"] = pa.nulls(len(row))
        return _Read(pa.table(kept | found), row, texts)  # type: ignore[arg-type]

    def scores(self, column: Column) -> np.ndarray:
        """float32 (N,): a column of scores of all samples, NaN for none."""
        array = self._array(column.folder)
        if column.pick == BEST:
            return array.at(self._array(column.judge or "").best())
        return array.of(column.pick or FIRST)

    def _scored(self, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See SourceTexts."""
        column = self._of.columns[f"{source}_score"]
        array = self._array(column.folder)
        if column.pick == BEST:
            best = self._array(column.judge or "").best()
            return array.has_text_at(best), best, array.at(best)
        k = column.pick or FIRST
        return array.has_text(k), np.full(array.samples, k, np.int32), array.of(k)

    def _array(self, folder: str) -> ScoreArray:
        if folder not in self._arrays:
            pinned = self._of.parts.pinned(self._of.store)
            self._arrays[folder] = read_array(self._of.store, folder, self._shard, pinned)
        return self._arrays[folder]

    def ok(self) -> np.ndarray | None:
        """bool (N,): which samples are ok; None for all."""
        if self._shard in self._of.parts.whole:
            return None
        for array in self._arrays.values():
            return array.is_ok
        name = f"{SAMPLES}/{self._shard}.parquet"
        record = self._of.parts.records.get(name)
        status = self._of.store.read_table(name, ["status"], record)["status"]
        found: np.ndarray = pc.equal(status, OK).to_numpy()
        return found

    def _rows(self, ok: np.ndarray | None) -> np.ndarray:
        if ok is None:
            return np.arange(self._of.parts.rows[self._shard], dtype=np.int32)
        return np.flatnonzero(ok).astype(np.int32)

    def _table(self, names: Collection[str], columns: Mapping[str, Column]) -> pa.Table:
        """Columns that are no scores, and uid and key where they are asked for."""
        lists = {LIST_COLUMN.format(name) for name in self._of.lists}
        asks_uid = not lists.isdisjoint(names) or not {"uid", "draw"}.isdisjoint(names)
        about = [*(["uid"] if asks_uid else []), *(["key"] if "key" in names else [])]
        if not about and not columns:
            return pa.table({})
        store, parts = self._of.store, self._of.parts
        table = read_samples(store, self._shard, columns, parts, about)
        for place, name in enumerate(table.column_names):
            if name in self._of.kinds:
                values = cast_to(table[name], self._of.kinds[name], name, self._shard)
                table = table.set_column(place, name, values)
        return table
