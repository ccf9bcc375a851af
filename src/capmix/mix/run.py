"""Run a plan over a pool's shards: find its thresholds, then give the rows that it keeps."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import local
from typing import TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.messages import progress
from capmix.engine.prefetch import prefetched
from capmix.errors import UserError
from capmix.mix.columns import Column, can_read_alone, one_array, read_alone, read_samples
from capmix.mix.expression import LIST_COLUMN, Threshold, bounded
from capmix.mix.kinds import cast_to
from capmix.mix.limits import in_pieces, limited
from capmix.mix.parts import Parts
from capmix.mix.plan import RecipePlan, locked_connection
from capmix.mix.threshold import TopFraction
from capmix.mix.uids import PAIR, PairSorter, UidList, pairs_of
from capmix.storage.store import Store

Result = TypeVar("Result")
KEEP_AT_MOST = 32_000_000  # float32 values that need not be read twice: 128 MB
ROW = np.dtype([*((name, PAIR[name]) for name in ("f0", "f1")), ("row", "i8")])
NO_CLAUSE, NO_WEIGHT, REPEATED = "no clause holds", "weight 0", "repeats an earlier {}"
WORD = pa.dictionary(pa.int32(), pa.string())  # in memory; the file has plain strings
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("shard", WORD),
        ("key", pa.string()),
        ("source", WORD),
        ("k", pa.int32()),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("weight", pa.int32()),
        ("copy", pa.int32()),
    ]
)


@dataclass(frozen=True)
class MixRun:
    """A plan with what it runs over. `batches` are names of shards that are read together;
    `kinds` the types of those columns that shards may have in several (see kinds.py)."""

    store: Store
    plan: RecipePlan
    lists: Mapping[str, UidList]
    batches: list[list[str]]
    parts: Parts
    workers: int
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    _threads: local = field(default_factory=local, repr=False)

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """One for each thread."""
        if not hasattr(self._threads, "connection"):
            self._threads.connection = locked_connection(self.plan.functions)
        made: duckdb.DuckDBPyConnection = self._threads.connection
        return made

    def query(self, sql: str, batch: pa.Table) -> pa.Table:
        sql, slow = bounded(sql)
        self.connection.register("batch", in_pieces(batch, self.plan.size, slow))
        try:
            with limited(self.connection, f"recipe {self.plan.recipe.name}"):
                found: pa.Table = self.connection.sql(sql).to_arrow_table()
        finally:
            self.connection.unregister("batch")
        if len(found) != len(batch):
            raise UserError(f"recipe {self.plan.recipe.name}: an expression is not of single rows")
        return found

    def read(self, shards: Sequence[str], columns: Mapping[str, Column]) -> pa.Table:
        """uid, shard, key and `columns` of some shards, and the lists' columns."""
        tables: list[pa.Table] = []
        for shard in shards:
            table = read_samples(self.store, shard, columns, self.parts)
            for place, name in enumerate(table.column_names):
                if name in self.kinds:
                    values = cast_to(table[name], self.kinds[name], name, shard)
                    table = table.set_column(place, name, values)
            numbers = pa.array(np.full(len(table), len(tables), np.int32))
            names_of = pa.DictionaryArray.from_arrays(numbers, pa.array(shards))
            tables.append(table.append_column("shard", names_of))
        batch = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        for name, uids in self.lists.items():
            found = pa.array(uids.times(one_array(batch["uid"])))
            batch = batch.append_column(LIST_COLUMN.format(name), found)
        return batch

    def each_batch(self, work: Callable[[list[str]], Result], about: str) -> Iterator[Result]:
        """`work` of every batch, in order, some at a time in threads."""
        with progress(about, "shard", sum(map(len, self.batches))) as bar:
            for batch, finished in prefetched(self.batches, work, self.workers, self.workers + 1):
                yield finished.result()
                bar.update(len(batch))


@dataclass
class MixTally:
    """What was seen and kept so far."""

    clauses: int
    samples: int = 0
    samples_kept: int = 0
    rows: int = 0
    weight: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    of_source: Counter[str] = field(default_factory=Counter)
    scored: Counter[str] = field(default_factory=Counter)
    score_sums: dict[str, float] = field(default_factory=dict)

    @cached_property
    def by_clause(self) -> np.ndarray:
        return np.zeros(self.clauses, np.int64)

    def mean_scores(self) -> dict[str, float | None]:
        return {
            source: round(self.score_sums[source] / self.scored[source], 6)
            if self.scored[source]
            else None
            for source in sorted(self.of_source)
        }


def find_thresholds(run: MixRun) -> dict[Threshold, float]:
    """The number that each threshold of the plan stands for, a float32, -inf, or NaN for one that
    no value reaches."""
    found = {threshold: TopFraction(threshold.fraction) for threshold in run.plan.thresholds}
    if not found:
        return {}
    # One reading for all thresholds of a value.
    values = {threshold.value: threshold for threshold in found}

    def of_batch(shards: list[str]) -> dict[str, np.ndarray]:
        return {value: _values(run, shards, one) for value, one in values.items()}

    kept: list[dict[str, np.ndarray]] = []
    keep = sum(run.parts.rows.values()) * len(values) <= KEEP_AT_MOST
    for read in run.each_batch(of_batch, "threshold"):
        for threshold, top in found.items():
            top.count(read[threshold.value])
        if keep:
            kept.append(read)
    for read in kept if keep else run.each_batch(of_batch, "threshold"):
        for threshold, top in found.items():
            top.refine(read[threshold.value])
    return {
        threshold: math.nan if threshold.is_datacomp and top.is_short else top.value()
        for threshold, top in found.items()
    }


def _values(run: MixRun, shards: list[str], threshold: Threshold) -> np.ndarray:
    """float32 (N,), NaN where there is none."""
    columns = run.plan.of_threshold(threshold)
    column = columns.get(threshold.value)
    found = None
    if column is not None and can_read_alone(column) and run.parts.whole.issuperset(shards):
        parts = [read_alone(run.store, shard, column, run.parts) for shard in shards]
        if all(len(part) == run.parts.rows[s] for part, s in zip(parts, shards, strict=True)):
            found = pa.chunked_array(parts).cast(pa.float32())
    if found is None:
        found = run.query(run.plan.value_sql(threshold), run.read(shards, columns))["v"]
    values: np.ndarray = pc.fill_null(found, np.nan).to_numpy()
    return values


@dataclass(frozen=True)
class _Chosen:
    """Which rows of a batch are kept: sample, clause and weight of each."""

    samples: np.ndarray
    clauses: np.ndarray
    weights: np.ndarray
    no_clause: int
    no_weight: int


def kept_rows(
    run: MixRun,
    values: Mapping[Threshold, float],
    tally: MixTally,
    repeated: np.ndarray | None = None,
) -> Iterator[pa.Table]:
    """The rows that are kept, SCHEMA, in pool order; `tally` counts them.

    `repeated` (see find_repeated) are the numbers of samples that are left out after all.
    """
    sql = run.plan.sql(values)

    def of_batch(shards: list[str]) -> tuple[pa.Table, _Chosen, pa.Table]:
        batch = run.read(shards, run.plan.columns)
        chosen = _choose(run.plan, run.query(sql, batch))
        return batch, chosen, _rows(run.plan, batch, chosen)

    for batch, chosen, table in run.each_batch(of_batch, f"mix {run.plan.recipe.name}"):
        clauses, samples = chosen.clauses, chosen.samples
        if repeated is not None:
            ends = np.searchsorted(repeated, [tally.samples, tally.samples + len(batch)])
            stays = ~np.isin(samples + tally.samples, repeated[slice(*ends)])
            table, clauses, samples = table.filter(stays), clauses[stays], samples[stays]
            why = REPEATED.format(run.plan.recipe.distinct)
            tally.dropped[why] += _distinct(chosen.samples) - _distinct(samples)
        tally.samples += len(batch)
        tally.samples_kept += _distinct(samples)
        tally.dropped[NO_CLAUSE] += chosen.no_clause
        tally.dropped[NO_WEIGHT] += chosen.no_weight
        tally.by_clause[:] += np.bincount(clauses, minlength=tally.clauses)
        _count(tally, table)
        yield table


def _count(tally: MixTally, table: pa.Table) -> None:
    tally.rows += len(table)
    tally.weight += pc.sum(table["weight"]).as_py() or 0
    sums = [("score", "sum"), ("score", "count"), ([], "count_all")]
    for group in table.group_by("source").aggregate(sums).to_pylist():
        source = group["source"]
        tally.of_source[source] += group["count_all"]
        tally.scored[source] += group["score_count"]
        known = tally.score_sums.get(source, 0.0)
        tally.score_sums[source] = known + (group["score_sum"] or 0.0)


def _choose(plan: RecipePlan, answers: pa.Table) -> _Chosen:
    """Row by row, the clauses that hold: the first, or all where the recipe keeps all."""
    holds = [answers[f"c{i}"].to_numpy() for i in range(len(plan.steps))]
    samples: np.ndarray
    clauses: np.ndarray
    if plan.recipe.keep == "first":
        first = np.full(len(answers), -1, np.int8)
        for i in reversed(range(len(holds))):
            first[holds[i]] = i
        samples = np.flatnonzero(first >= 0)
        clauses = first[samples]
    else:
        samples, clauses = np.nonzero(np.column_stack(holds))
    held = _distinct(samples)
    weights: np.ndarray = np.ones(len(samples), np.int32)
    if plan.is_weighted:
        weights = _weights(plan, answers, samples, clauses)
        samples, clauses, weights = (a[weights > 0] for a in (samples, clauses, weights))
    return _Chosen(samples, clauses, weights, len(answers) - held, held - _distinct(samples))


def _distinct(ascending: np.ndarray) -> int:
    """How many different numbers there are."""
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def _weights(
    plan: RecipePlan, answers: pa.Table, samples: np.ndarray, clauses: np.ndarray
) -> np.ndarray:
    """Whole weights, int32: of 2.3, three for three in ten samples and two for the others."""
    given = [pc.fill_null(answers[f"w{i}"], 0).to_numpy() for i in range(len(plan.steps))]
    wanted = np.nan_to_num(np.column_stack(given)[samples, clauses], nan=0.0)
    wanted = wanted.clip(0, plan.recipe.max_repeats)
    whole = np.floor(wanted)
    more = answers["repeat_draw"].to_numpy()[samples] < wanted - whole
    found: np.ndarray = (whole + more).astype(np.int32)
    return found


def _rows(plan: RecipePlan, batch: pa.Table, chosen: _Chosen) -> pa.Table:
    samples, clauses = pa.array(chosen.samples), chosen.clauses
    names = [step.clause.source for step in plan.steps]
    samples_of = [chosen.samples[clauses == i] for i in range(len(names))]
    # Where each row lies once those of a clause stand together.
    place = pa.array(np.argsort(np.argsort(clauses, kind="stable"), kind="stable"))

    def of_clause(field: str, kind: pa.DataType) -> pa.Array:
        """The value of `field` that belongs to each row's clause."""
        of_each = [_column(batch, f"{name}_{field}", kind) for name in names]
        if len(of_each) == 1:
            return of_each[0].take(samples)
        kept = [one.take(pa.array(of)) for one, of in zip(of_each, samples_of, strict=True)]
        return pa.concat_arrays(kept).take(place)

    sources = pa.array([_plain_name(plan, name) for name in names])
    texts = of_clause("text", pa.string())
    if plan.recipe.without_text == "keep":  # what img2dataset writes for a sample without a text
        texts = pc.fill_null(texts, "")
    columns = {
        "uid": _column(batch, "uid", pa.string()).take(samples),
        "shard": _column(batch, "shard", WORD).take(samples),
        "key": _column(batch, "key", pa.string()).take(samples),
        "source": pa.DictionaryArray.from_arrays(pa.array(clauses), sources).cast(WORD),
        "k": pc.fill_null(of_clause("k", pa.int32()), 0),
        "text": texts,
        "score": of_clause("score", pa.float32()),
        "weight": pa.array(chosen.weights),
        "copy": pa.array(_first_copies(chosen)),
    }
    return pa.table(columns, schema=SCHEMA)


def _first_copies(chosen: _Chosen) -> np.ndarray:
    """int32: how much the earlier rows of the same sample weigh together."""
    before = np.cumsum(chosen.weights) - chosen.weights
    begins = np.ones(len(before), bool)
    begins[1:] = np.diff(chosen.samples) != 0
    first = np.maximum.accumulate(np.where(begins, before, 0))
    found: np.ndarray = (before - first).astype(np.int32)
    return found


def _plain_name(plan: RecipePlan, name: str) -> str:
    """blip2 for blip2_best: the folder of the source's captions."""
    folder = plan.columns[f"{name}_text"].folder
    return folder.rpartition("/")[2] if "/" in folder else name


def _column(batch: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if name not in batch.column_names:
        return pa.nulls(len(batch), kind)
    column = one_array(batch[name])
    return column if column.type == kind else column.cast(kind)


def find_repeated(run: MixRun, values: Mapping[Threshold, float]) -> np.ndarray:
    """Numbers, counted through the pool, of samples that are kept though an earlier one that is
    kept has the same value of the recipe's `distinct` column.

    The values' md5 stand for them. A missing value repeats nothing.
    """
    column = run.plan.recipe.distinct or ""
    sql = f'select md5("{column}"::VARCHAR) as v from batch'
    repeated = []
    with run.store.scratch() as scratch:
        sorter = PairSorter(scratch, ROW)

        def of_batch(shards: list[str]) -> tuple[pa.Array, _Chosen]:
            batch = run.read(shards, run.plan.columns)
            chosen = _choose(run.plan, run.query(run.plan.sql(values), batch))
            return one_array(run.query(sql, batch)["v"]), chosen

        sample = 0
        for digests, chosen in run.each_batch(of_batch, f"distinct {column}"):
            kept = np.unique(chosen.samples)
            present = kept[~digests.take(pa.array(kept)).is_null().to_numpy(False)]
            records = np.empty(len(present), ROW)
            pairs = pairs_of(digests.take(pa.array(present)))
            records["f0"], records["f1"], records["row"] = pairs["f0"], pairs["f1"], present
            records["row"] += sample
            sorter.add(records)
            sample += len(digests)
        for records in sorter.sorted():
            again = np.zeros(len(records), bool)
            again[1:] = (records["f0"][1:] == records["f0"][:-1]) & (
                records["f1"][1:] == records["f1"][:-1]
            )
            repeated.append(records["row"][again])
    return np.sort(np.concatenate(repeated))


def shuffled(run: MixRun, table: pa.Table) -> pa.Table:
    """Each text moves to the next sample in the order of `draw`: none keeps its own place."""
    draws = run.query(f"select draw from {run.plan.rows()}", table)["draw"].to_numpy()
    order = np.argsort(draws, kind="stable")
    giver = np.empty(len(table), np.int64)
    giver[order] = np.roll(order, 1)
    texts = table["text"].take(pa.array(giver))
    nothing = pa.nulls(len(table), pa.float32())
    moved = table.set_column(table.schema.get_field_index("text"), "text", texts)
    return moved.set_column(moved.schema.get_field_index("score"), "score", nothing)
