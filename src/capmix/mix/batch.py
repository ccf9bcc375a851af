"""Read the data that a recipe needs, a few shards at a time: its columns, and which texts exist.

Scores are raw arrays (score/array.py), which also store which samples are ok and have a text.
Tables are read only for other columns, and only these columns are read.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.mix.columns import BEST, FIRST, Column, one_array, read_samples
from capmix.mix.expression import LIST_COLUMN
from capmix.mix.kinds import cast_to
from capmix.mix.parts import Parts, is_of_scores
from capmix.mix.uids import UidList
from capmix.score.array import ScoreArray, read_array
from capmix.storage.layout import FIELDS, SAMPLES
from capmix.storage.rows import OK
from capmix.storage.store import Store

TEXT = "\0{}"  # no expression can name it


@dataclass(frozen=True)
class SourceTexts:
    """One text for each of N samples.

    `is_there`: whether the sample has the text, bool (N,). `score`: float32 (N,), NaN for none.
    The text is caption number `k` of every sample or, if `best` is set, caption `best[i]` of sample
    i, int32 (N,).
    """

    is_there: np.ndarray
    score: np.ndarray
    k: int = 0
    best: np.ndarray | None = None


@dataclass(frozen=True)
class SampleBatch:
    """The N samples of `shards` that are ok, in pool order.

    `table` has the requested columns. `shard` is the position of a sample's shard in `shards`, and
    `row` the sample's row in the index of its shard, both int32 (N,). `texts` maps each source to
    its texts.
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
    """Reads batches.

    `columns` are all columns that a recipe can use, `kinds` the types of columns whose type can
    differ between shards (see kinds.py), and `lists` the uid lists.
    """

    store: Store
    columns: Mapping[str, Column]
    kinds: Mapping[str, pa.DataType]
    lists: Mapping[str, UidList]

    def read(
        self, parts: Parts, names: Collection[str], sources: Iterable[str] = ()
    ) -> SampleBatch:
        """Read the columns `names` and the texts of `sources` for all shards of `parts`.

        `sources` are named as in clauses, for example blip2_best.
        """
        sources, shards = list(sources), list(parts.rows)
        found = [_ShardReader(self, parts, shard).read(names, sources) for shard in shards]
        rows = np.concatenate([one.row for one in found])
        table = pa.table({"nothing": pa.nulls(len(rows))})  # a table without columns has no rows
        if found[0].table is not None:
            tables = (one.table for one in found)
            table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        for name in found[0].scores:
            scores = np.concatenate([one.scores[name] for one in found])
            is_none = np.isnan(scores)
            column = pa.array(scores, mask=is_none if is_none.any() else None)
            table = table.append_column(name, column)
        counts = [len(one.row) for one in found]
        numbers = np.repeat(np.arange(len(found), dtype=np.int32), counts)
        if "shard" in names:
            of_table = pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(shards))
            table = table.append_column("shard", of_table)
        for name, uids in self.lists.items():
            if LIST_COLUMN.format(name) in names:
                times = pa.array(uids.times(one_array(table["uid"])))
                table = table.append_column(LIST_COLUMN.format(name), times)
        texts = {source: _together([one.texts[source] for one in found]) for source in sources}
        return SampleBatch(shards, table, numbers, rows, texts)

    def of_scores(self, parts: Parts, column: Column) -> np.ndarray:
        """Return the scores of the samples that are ok, float32 (N,), NaN for none."""
        found = []
        for shard in parts.rows:
            reader = _ShardReader(self, parts, shard)
            values = reader.scores(column)
            ok = reader.ok()
            found.append(values if ok is None else values[ok])
        return np.concatenate(found)


def is_score(column: Column | None) -> bool:
    """Whether a column holds scores, which are read as arrays."""
    return column is not None and is_of_scores(column.folder) and column.field == "score"


def _together(parts: Sequence[SourceTexts]) -> SourceTexts:
    return SourceTexts(
        np.concatenate([one.is_there for one in parts]),
        np.concatenate([one.score for one in parts]),
        parts[0].k,
        None if parts[0].best is None else np.concatenate([one.best for one in parts]),
    )


@dataclass(frozen=True)
class _Read:
    """The data of one shard; `table` is None if only scores are requested."""

    table: pa.Table | None
    scores: dict[str, np.ndarray]
    row: np.ndarray
    texts: dict[str, SourceTexts]


class _ShardReader:
    """Reads one shard, and each array of it only once."""

    def __init__(self, reader: BatchReader, parts: Parts, shard: str):
        self._of, self._parts, self._shard = reader, parts, shard
        self._pinned = parts.pinned(reader.store)
        self._arrays: dict[str, ScoreArray] = {}

    def read(self, names: Collection[str], sources: Sequence[str]) -> _Read:
        columns = self._of.columns
        scores = {name: columns[name] for name in names if is_score(columns.get(name))}
        plain = {name: columns[name] for name in names if name in columns and name not in scores}
        unscored = [one for one in sources if not is_score(columns.get(f"{one}_score"))]
        plain |= {TEXT.format(one): columns[f"{one}_text"] for one in unscored}
        found = {name: self.scores(column) for name, column in scores.items()}
        texts = {one: self._scored(one) for one in sources if one not in unscored}
        ok = self.ok()
        if ok is not None:
            found = {name: one[ok] for name, one in found.items()}
            texts = {name: _of_some(one, ok) for name, one in texts.items()}
        rows = self._parts.rows[self._shard]
        row = np.arange(rows, dtype=np.int32) if ok is None else np.flatnonzero(ok).astype(np.int32)
        table = self._table(names, plain)
        for one in unscored:
            assert table is not None
            is_there = pc.is_valid(table[TEXT.format(one)]).to_numpy()
            table = table.drop_columns(TEXT.format(one))
            k = max(columns[f"{one}_text"].pick or 0, 0)
            texts[one] = SourceTexts(is_there, np.full(len(row), np.nan, np.float32), k)
        has_columns = table is not None and bool(table.column_names)
        return _Read(table if has_columns else None, found, row, texts)

    def scores(self, column: Column) -> np.ndarray:
        """Return the scores of all samples, float32 (N,), NaN for none."""
        array = self._array(column.folder)
        if column.pick == BEST:
            return array.at(self._array(column.judge or "").best())
        return array.of(column.pick or FIRST)

    def _scored(self, source: str) -> SourceTexts:
        column = self._of.columns[f"{source}_score"]
        array = self._array(column.folder)
        if column.pick == BEST:
            best = self._array(column.judge or "").best()
            return SourceTexts(array.has_text_at(best), array.at(best), best=best)
        k = column.pick or FIRST
        return SourceTexts(array.has_text(k), array.of(k), k)

    def _array(self, folder: str) -> ScoreArray:
        if folder not in self._arrays:
            array = read_array(self._of.store, folder, self._shard, self._pinned)
            self._arrays[folder] = array
        return self._arrays[folder]

    def ok(self) -> np.ndarray | None:
        """Return which samples are ok and not excluded, bool (N,), or None if all are."""
        ok, excluded = self._ok(), self._parts.excluded(self._shard)
        if excluded is None:
            return ok
        return ~excluded if ok is None else ok & ~excluded

    def _ok(self) -> np.ndarray | None:
        if self._shard in self._parts.whole:
            return None
        for array in self._arrays.values():
            return array.is_ok
        name = f"{SAMPLES}/{self._shard}.parquet"
        record = self._parts.records.get(name)
        status = self._of.store.read_table(name, ["status"], record)["status"]
        found: np.ndarray = pc.equal(status, OK).to_numpy()
        return found

    def _table(self, names: Collection[str], columns: Mapping[str, Column]) -> pa.Table | None:
        """Read the columns that are not scores, with uid and key if needed."""
        lists = {LIST_COLUMN.format(name) for name in self._of.lists}
        asks_uid = not lists.isdisjoint(names) or not {"uid", "draw"}.isdisjoint(names)
        about = [*(["uid"] if asks_uid else []), *(["key"] if "key" in names else [])]
        if not about and not columns:
            return None
        store, parts = self._of.store, self._parts
        table = read_samples(store, self._shard, columns, parts, about)
        for place, name in enumerate(table.column_names):
            if name in self._of.kinds:
                is_field = self._of.columns[name].folder == FIELDS
                kind = self._of.kinds[name]
                values = cast_to(table[name], kind, name, self._shard, is_field)
                table = table.set_column(place, name, values)
        return table


def _of_some(texts: SourceTexts, ok: np.ndarray) -> SourceTexts:
    best = None if texts.best is None else texts.best[ok]
    return SourceTexts(texts.is_there[ok], texts.score[ok], texts.k, best)
