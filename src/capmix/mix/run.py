"""Run a plan over the shards of a pool: compute its thresholds, then yield the kept rows."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import local
from typing import Any, Literal, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.mapped import Mapper
from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.mix.batch import BatchReader, SampleBatch, is_score
from capmix.mix.columns import can_read_alone, one_array, read_alone
from capmix.mix.expression import PoolScale, Threshold, bounded
from capmix.mix.limits import in_pieces, limited
from capmix.mix.parts import Parts
from capmix.mix.plan import RecipePlan, locked_connection
from capmix.mix.scale import Spread
from capmix.mix.subset import texts_of
from capmix.mix.threshold import Ordered, TopFraction
from capmix.mix.uids import PAIR, PairSorter, pairs_of

Result = TypeVar("Result")
With = Literal["references", "uids", "texts"]
KEEP_AT_MOST = 32_000_000  # float32 values kept in memory between the passes: 128 MB
ROW = np.dtype([*((name, PAIR[name]) for name in ("f0", "f1")), ("row", "i8")])
NO_ARRAYS = ("shards", "texts")  # fields of Kept that are not arrays
NO_LOGIT, NOT_DRAWN = "no logit", "not drawn"
NO_CLAUSE, NO_WEIGHT, REPEATED = "no clause holds", "weight 0", "repeats an earlier {}"


@dataclass(frozen=True)
class MixRun:
    """A plan and its inputs. `batches` are lists of shard names that are read together."""

    plan: RecipePlan
    reader: BatchReader
    parts: Parts
    batches: list[list[str]]
    mapper: Mapper
    _threads: local = field(default_factory=local, repr=False)

    @property
    def samples(self) -> int:
        """The number of samples in the index."""
        return sum(self.parts.rows.values())

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """This thread's connection."""
        if not hasattr(self._threads, "connection"):
            self._threads.connection = locked_connection(self.plan.functions)
        made: duckdb.DuckDBPyConnection = self._threads.connection
        return made

    def query(self, sql: str, batch: pa.Table) -> pa.Table:
        """Run `sql` on `batch`.

        Raises UserError if it exceeds a limit or does not return one row for each row of `batch`.
        """
        sql, slow = bounded(sql)
        self.connection.register("batch", in_pieces(batch, self.plan.size, slow))
        try:
            with limited(self.connection, self.plan.place):
                found: pa.Table = self.connection.sql(sql).to_arrow_table()
        finally:
            self.connection.unregister("batch")
        if len(found) != len(batch):
            raise UserError(f"{self.plan.place}: an expression does not return one value per row")
        return found

    def each_batch(self, work: Callable[[Parts], Result], about: str) -> Iterator[Result]:
        """Yield the result of `work` on the parts of each batch, in order."""
        batches = map(self.parts.of, self.batches)
        with progress(about, "shard", len(self.parts.rows)) as bar:
            for parts, found in self.mapper(work, batches):
                yield found
                bar.update(len(parts.rows))

    def __getstate__(self) -> dict[str, Any]:
        """Drop what workers do not need: they receive the parts of each batch separately."""
        return vars(self) | {"_threads": None, "mapper": None, "parts": None, "batches": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_threads": local()})


@dataclass
class MixTally:
    """Counts of samples and rows processed so far."""

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
            if self.of_source[source]
        }


@dataclass(frozen=True)
class _Values:
    """A batch's part in the computation of a threshold. `kept` are its values if they fit in memory
    until the second pass, otherwise None."""

    total: int
    upper: np.ndarray
    kept: Ordered | None


@dataclass(frozen=True)
class Thresholds:
    """The values of a plan's thresholds: float32, -inf if every value reaches the threshold, NaN if
    none does.

    `short` has an entry for each threshold whose value fewer samples have than its fraction
    requests: the requested number, and the number with a value. Fractions are of `samples`.
    """

    values: dict[Threshold, float]
    short: dict[Threshold, tuple[int, int]]
    samples: int = 0


def with_scales(run: MixRun) -> MixRun:
    """Return the run with the line of every scale of its plan computed and filled in.

    This takes one pass over their values, and none if the plan has no scale.
    """
    scales = {scale.value: scale for scale in run.plan.scales}
    if not scales:
        return run
    spreads = dict.fromkeys(scales, Spread())
    for found in run.each_batch(partial(_spreads, run, scales), "scale"):
        spreads = {value: spreads[value] + one for value, one in found.items()}
    lines = {scale: spreads[scale.value].line(scale.function) for scale in run.plan.scales}
    return replace(run, plan=run.plan.scaled(lines))


def _spreads(run: MixRun, scales: Mapping[str, PoolScale], parts: Parts) -> dict[str, Spread]:
    return {value: Spread.of(_values(run, parts, one)) for value, one in scales.items()}


def find_thresholds(run: MixRun) -> Thresholds:
    """Compute all thresholds of a plan in one or two passes over the values."""
    tops = {threshold: TopFraction(threshold.fraction) for threshold in run.plan.thresholds}
    if not tops:
        return Thresholds({}, {})
    # The thresholds of the same value share a pass.
    values = {threshold.value: threshold for threshold in tops}
    keep = run.samples * len(values) <= KEEP_AT_MOST
    kept: list[dict[str, Ordered | None]] = []
    for read in run.each_batch(partial(_counted, run, values, keep), "threshold"):
        for threshold, top in tops.items():
            top.count(read[threshold.value].total, read[threshold.value].upper)
        kept.append({value: one.kept for value, one in read.items()})
    bins = {t: top.bin for t, top in tops.items() if top.bin is not None}
    lowers: Iterable[dict[Threshold, np.ndarray]] = (_lower_of(one, bins) for one in kept)
    if bins and not keep:
        lowers = run.each_batch(partial(_lower, run, values, bins), "threshold")
    for lower in lowers if bins else ():
        for threshold in bins:
            tops[threshold].refine(lower[threshold])
    found = {
        threshold: math.nan if threshold.is_datacomp and top.is_short else top.value()
        for threshold, top in tops.items()
    }
    short = {one: top.asked for one, top in tops.items() if top.lacks}
    return Thresholds(found, short, next(iter(tops.values())).total)


def _counted(
    run: MixRun, values: Mapping[str, Threshold], keep: bool, parts: Parts
) -> dict[str, _Values]:
    found = {}
    for value, threshold in values.items():
        ordered = Ordered.of(_values(run, parts, threshold))
        found[value] = _Values(ordered.total, ordered.upper(), ordered if keep else None)
    return found


def _lower(
    run: MixRun, values: Mapping[str, Threshold], bins: Mapping[Threshold, int], parts: Parts
) -> dict[Threshold, np.ndarray]:
    read = {value: Ordered.of(_values(run, parts, one)) for value, one in values.items()}
    return _lower_of(read, bins)


def _lower_of(
    read: Mapping[str, Ordered | None], bins: Mapping[Threshold, int]
) -> dict[Threshold, np.ndarray]:
    found = ((threshold, upper, read[threshold.value]) for threshold, upper in bins.items())
    return {threshold: one.lower(upper) for threshold, upper, one in found if one is not None}


def _values(run: MixRun, parts: Parts, of: Threshold | PoolScale) -> np.ndarray:
    """Return the values of a threshold's or scale's expression, float32 (N,), NaN for none."""
    reader = run.reader
    column = reader.columns.get(of.value)
    if column is not None and is_score(column):
        return reader.of_scores(parts, column)
    found = None
    has_all = parts.whole.issuperset(parts.rows) and not parts.left_out
    if column is not None and can_read_alone(column) and has_all:
        alone = [read_alone(reader.store, shard, column, parts) for shard in parts.rows]
        if all(len(one) == rows for one, rows in zip(alone, parts.rows.values(), strict=True)):
            found = pa.chunked_array(alone).cast(pa.float32())
    if found is None:
        batch = reader.read(parts, of.columns)
        found = run.query(run.plan.value_sql(of), batch.table)["v"]
    values: np.ndarray = pc.fill_null(found, np.nan).to_numpy()
    return values


@dataclass(frozen=True)
class _Chosen:
    """The kept rows of a batch: sample, clause and weight of each.

    `no_clause` counts the samples for which no clause holds, `no_weight` those whose rows all have
    weight 0. `composed` are the texts from templates, null for clauses without one; None if no
    clause has a template. `logits` and `digests` are those of Kept.
    """

    samples: np.ndarray
    clauses: np.ndarray
    weights: np.ndarray
    no_clause: int
    no_weight: int
    composed: pa.Array | None = None
    logits: np.ndarray | None = None
    digests: np.ndarray | None = None


@dataclass(frozen=True)
class Kept:
    """The kept rows of a batch, in pool order.

    `shard` is the position of a row's shard in `shards`, `row` the sample's row in the shard's
    index, and `clause` the clause number. `k`, `score` (NaN for none), `weight` and `copy` are
    those of subset.py. `texts` has uid, key and text of the rows, or only the uid, if requested.
    `logit` (float32, NaN for none) and `digest` (PAIR, the md5 of the uid) are present if requested
    by a recipe that draws rows.
    """

    shards: list[str]
    shard: np.ndarray
    row: np.ndarray
    clause: np.ndarray
    k: np.ndarray
    score: np.ndarray
    weight: np.ndarray
    copy: np.ndarray
    texts: pa.Table | None = None
    logit: np.ndarray | None = None
    digest: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    def __getstate__(self) -> dict[str, Any]:
        """Send constant columns, which most are, to other processes as a single value."""
        return {name: _packed(one) for name, one in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: _unpacked(one) for name, one in state.items()})

    def where(self, stays: np.ndarray) -> "Kept":
        """Return the rows where `stays` is true."""
        arrays: dict[str, Any] = {
            name: None if one is None else one[stays]
            for name, one in vars(self).items()
            if name not in NO_ARRAYS
        }
        texts = None if self.texts is None else self.texts.filter(pa.array(stays))
        return Kept(self.shards, **arrays, texts=texts)


@dataclass(frozen=True)
class _Repeated:
    """A constant array."""

    value: Any
    count: int


def _packed(one: Any) -> Any:
    if isinstance(one, np.ndarray) and len(one) and (one == one[0]).all():
        return _Repeated(one[0], len(one))
    return one


def _unpacked(one: Any) -> Any:
    return np.full(one.count, one.value) if isinstance(one, _Repeated) else one


@dataclass(frozen=True)
class _Counted:
    """The kept rows of a batch, and counts of the samples that are left out."""

    kept: Kept
    samples: np.ndarray
    of_batch: int
    no_clause: int
    no_weight: int


def kept_rows(
    run: MixRun,
    values: Mapping[Threshold, float],
    tally: MixTally,
    repeated: np.ndarray | None = None,
    read: With = "references",
    drawn: np.ndarray | None = None,
    with_logits: bool = False,
) -> Iterator[Kept]:
    """Yield the kept rows in pool order, and count them in `tally`.

    `read` selects what the rows have: only references, also uids, or also uid, key and text.
    `repeated` (see find_repeated) are the numbers of samples to leave out as repetitions. `drawn`
    is how often each row is drawn (see drawn.py), -1 for a row without a logit, int32 (rows,); the
    rows must first have been yielded without it, and `with_logits`.
    """
    names = [run.plan.source_of(step) for step in run.plan.steps]
    sql = run.plan.sql(values, with_text=False, with_logits=with_logits)
    work = partial(_kept_of, run, sql, names, read)
    rows = 0
    for found in run.each_batch(work, f"mix {run.plan.recipe.name}"):
        kept, samples = found.kept, found.samples
        if repeated is not None:
            ends = np.searchsorted(repeated, [tally.samples, tally.samples + found.of_batch])
            stays = ~np.isin(samples + tally.samples, repeated[slice(*ends)])
            kept, samples = kept.where(stays), samples[stays]
            why = REPEATED.format(run.plan.recipe.distinct)
            tally.dropped[why] += _distinct(found.samples) - _distinct(samples)
        if drawn is not None:
            times = drawn[rows : rows + len(kept)]
            rows += len(kept)
            kept, samples = _drawn(run.plan, kept, samples, times, tally)
        tally.samples += found.of_batch
        tally.samples_kept += _distinct(samples)
        tally.dropped[NO_CLAUSE] += found.no_clause
        tally.dropped[NO_WEIGHT] += found.no_weight
        _count(tally, kept, names)
        yield kept


def _drawn(
    plan: RecipePlan, kept: Kept, samples: np.ndarray, times: np.ndarray, tally: MixTally
) -> tuple[Kept, np.ndarray]:
    """Return the rows with `times` above 0, their weight, and their samples."""
    with_logit = _distinct(samples[times >= 0])
    tally.dropped[NO_LOGIT] += _distinct(samples) - with_logit
    stays = times > 0
    kept, samples, times = replace(kept, weight=times).where(stays), samples[stays], times[stays]
    tally.dropped[NOT_DRAWN] += with_logit - _distinct(samples)
    if plan.recipe.keep == "all":
        kept = replace(kept, copy=_first_copies(samples, times))
    return kept, samples


def _kept_of(run: MixRun, sql: str, names: Sequence[str], read: With, parts: Parts) -> _Counted:
    batch, chosen = _chosen(run, sql, parts, ())
    kept = _rows(run.plan, batch, chosen)
    if read != "references":
        texts = _texts(run, parts, kept, names, read == "texts")
        if texts is not None and read == "texts" and chosen.composed is not None:
            text = pc.coalesce(chosen.composed, one_array(texts["text"]))
            texts = texts.set_column(texts.schema.get_field_index("text"), "text", text)
        kept = replace(kept, texts=texts)
    return _Counted(kept, chosen.samples, len(batch), chosen.no_clause, chosen.no_weight)


def _texts(
    run: MixRun, parts: Parts, kept: Kept, names: Sequence[str], with_text: bool
) -> pa.Table | None:
    """Read the uid and, `with_text`, key and text of each row; None if there are no rows."""
    store = run.reader.store
    pinned = parts.pinned(store)
    ends = np.searchsorted(kept.shard, np.arange(len(kept.shards)), side="right")
    tables = []
    for number, (shard, end) in enumerate(zip(kept.shards, ends, strict=True)):
        here = slice(ends[number - 1] if number else 0, end)
        if here.start == here.stop:
            continue
        clause = kept.clause[here]
        of_source = {
            name: np.isin(clause, [i for i, one in enumerate(names) if one == name])
            for name in dict.fromkeys(names)
        }
        tables.append(
            texts_of(store, pinned, shard, kept.row[here], kept.k[here], of_source, with_text)
        )
    return pa.concat_tables(tables) if tables else None


def chosen_samples(run: MixRun, sql: str, about: Sequence[str], parts: Parts) -> pa.Table:
    """Return the columns `about` of the samples of a batch for which the first clause of `sql` (see
    RecipePlan.sql) holds, even if they have no text."""
    batch = run.reader.read(parts, run.plan.of_rows | {*about})
    return batch.table.filter(run.query(sql, batch.table)["c0"]).select(about)


def _chosen(
    run: MixRun, sql: str, parts: Parts, more: Collection[str]
) -> tuple[SampleBatch, _Chosen]:
    """Read a batch, with the columns `more` in addition to those of the clauses, and choose its
    rows."""
    plan = run.plan
    needs_uid = plan.is_weighted or plan.draws
    names = plan.of_rows | {*more} | ({"uid"} if needs_uid else set())
    batch = run.reader.read(parts, names, dict.fromkeys(s.clause.source for s in plan.steps))
    return batch, _choose(plan, run.query(sql, batch.table), batch)


def _count(tally: MixTally, kept: Kept, names: list[str]) -> None:
    """Count rows and scores by clause and by source; `names` has the source of each clause."""
    tally.rows += len(kept)
    tally.weight += int(kept.weight.sum(dtype=np.int64))
    size = tally.clauses
    rows = np.bincount(kept.clause, minlength=size)
    clause, score = kept.clause, kept.score
    if np.isnan(score).any():
        is_scored = ~np.isnan(score)
        clause, score = clause[is_scored], score[is_scored]
    scored = np.bincount(clause, minlength=size)
    sums = np.bincount(clause, score, minlength=size)
    tally.by_clause[:] += rows
    for source, *counts in zip(names, rows.tolist(), scored.tolist(), sums.tolist(), strict=True):
        tally.of_source[source] += counts[0]
        tally.scored[source] += counts[1]
        tally.score_sums[source] = tally.score_sums.get(source, 0.0) + counts[2]


def _choose(plan: RecipePlan, answers: pa.Table, batch: SampleBatch) -> _Chosen:
    """Choose for each sample the first clause that holds, or all if the recipe keeps all."""
    holds = [answers[f"c{i}"].to_numpy() for i in range(len(plan.steps))]
    if plan.recipe.without_text == "drop":
        has_text = _has_text(plan, answers, batch)
        holds = [one & has for one, has in zip(holds, has_text, strict=True)]
    samples: np.ndarray
    clauses: np.ndarray
    if plan.recipe.keep == "first":
        first = np.full(len(answers), -1, np.int8)
        for i in reversed(range(len(holds))):
            np.copyto(first, np.int8(i), where=holds[i])
        samples = np.flatnonzero(first >= 0)
        clauses = first[samples]
    else:
        samples, clauses = np.nonzero(np.column_stack(holds))
    held = _distinct(samples)
    weights: np.ndarray = np.ones(len(samples), np.int32)
    if plan.is_weighted:
        weights = _weights(plan, answers, samples, clauses)
        samples, clauses, weights = (a[weights > 0] for a in (samples, clauses, weights))
    composed = _composed(plan, answers, samples, clauses)
    no_clause, no_weight = len(answers) - held, held - _distinct(samples)
    logits = _logits(plan, answers, samples, clauses)
    return _Chosen(samples, clauses, weights, no_clause, no_weight, composed, *logits)


def _logits(
    plan: RecipePlan, answers: pa.Table, samples: np.ndarray, clauses: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the logits and the digests (see Kept), if the query has them."""
    if "uid_digest" not in answers.column_names:
        return None, None
    given = [pc.fill_null(answers[f"g{i}"], np.nan).to_numpy() for i in range(len(plan.steps))]
    digests = one_array(answers["uid_digest"]).take(pa.array(samples))
    return np.stack(given)[clauses, samples], pairs_of(digests)


def _has_text(plan: RecipePlan, answers: pa.Table, batch: SampleBatch) -> list[np.ndarray]:
    """Return for each clause whether its text exists, bool (N,)."""
    return [
        batch.texts[step.clause.source].is_there
        if step.text is None
        else pc.is_valid(answers[f"t{i}"]).to_numpy()
        for i, step in enumerate(plan.steps)
    ]


def _composed(
    plan: RecipePlan, answers: pa.Table, samples: np.ndarray, clauses: np.ndarray
) -> pa.Array | None:
    """Return the composed texts (see _Chosen). A missing one, which `without_text: keep` allows, is
    empty."""
    if not plan.composes:
        return None
    found = pa.nulls(len(samples), pa.string())
    for i, step in enumerate(plan.steps):
        if step.text is not None:
            texts = pc.fill_null(one_array(answers[f"t{i}"]).take(pa.array(samples)), "")
            found = pc.if_else(pa.array(clauses == i), texts, found)
    return found


def _distinct(ascending: np.ndarray) -> int:
    """Return the number of distinct values of a sorted array."""
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def _weights(
    plan: RecipePlan, answers: pa.Table, samples: np.ndarray, clauses: np.ndarray
) -> np.ndarray:
    """Round weights to int32 by repeat_draw: 2.3 becomes 3 for three samples in ten, else 2."""
    given = [pc.fill_null(answers[f"w{i}"], 0).to_numpy() for i in range(len(plan.steps))]
    wanted = np.nan_to_num(np.column_stack(given)[samples, clauses], nan=0.0)
    wanted = wanted.clip(0, plan.recipe.max_repeats)
    whole = np.floor(wanted)
    more = answers["repeat_draw"].to_numpy()[samples] < wanted - whole
    found: np.ndarray = (whole + more).astype(np.int32)
    return found


def _rows(plan: RecipePlan, batch: SampleBatch, chosen: _Chosen) -> Kept:
    samples, clauses = chosen.samples, chosen.clauses
    texts = [batch.texts[step.clause.source] for step in plan.steps]
    k = np.array([one.k for one in texts], np.int32)[clauses]
    for i, one in enumerate(texts):
        if one.best is not None:
            here = clauses == i
            k[here] = one.best[samples[here]]
    score = np.stack([one.score for one in texts])[clauses, samples]
    composes = np.array([step.text is not None for step in plan.steps])
    score[composes[clauses]] = (
        np.nan
    )  # the score belongs to the source's text, not to the composed one
    once = plan.recipe.keep == "first"
    return Kept(
        list(batch.shards),
        batch.shard[samples],
        batch.row[samples],
        clauses,
        k,
        score,
        chosen.weights,
        np.zeros(len(samples), np.int32) if once else _first_copies(samples, chosen.weights),
        logit=chosen.logits,
        digest=chosen.digests,
    )


def _first_copies(samples: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the total weight of the earlier rows of the same sample, int32 (N,)."""
    before = np.cumsum(weights) - weights
    begins = np.ones(len(before), bool)
    begins[1:] = np.diff(samples) != 0
    first = np.maximum.accumulate(np.where(begins, before, 0))
    found: np.ndarray = (before - first).astype(np.int32)
    return found


def find_repeated(run: MixRun, values: Mapping[Threshold, float]) -> np.ndarray:
    """Return the numbers (positions in the pool) of kept samples that repeat an earlier kept
    sample's value of the recipe's `distinct` column.

    Values are compared by md5. Missing values are never repetitions.
    """
    column = run.plan.recipe.distinct or ""
    sql = f'select md5("{column}"::VARCHAR) as v from batch'
    repeated = []
    choosing = run.plan.sql(values, with_text=False)
    with run.reader.store.scratch() as scratch:
        sorter = PairSorter(scratch, ROW)

        work = partial(_with_digests, run, choosing, sql)
        sample = 0
        for digests, chosen in run.each_batch(work, f"distinct {column}"):
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


def _with_digests(run: MixRun, choosing: str, sql: str, parts: Parts) -> tuple[pa.Array, _Chosen]:
    column = run.plan.recipe.distinct or ""
    batch, chosen = _chosen(run, choosing, parts, [column])
    return one_array(run.query(sql, batch.table)["v"]), replace(chosen, composed=None)


def shuffled(run: MixRun, table: pa.Table) -> pa.Table:
    """Move each text to the next sample in the order of `draw`, so that no sample keeps its own."""
    found = run.query(f"select draw from {run.plan.rows(['draw'])}", table)
    order = np.argsort(found["draw"].to_numpy(), kind="stable")
    giver = np.empty(len(table), np.int64)
    giver[order] = np.roll(order, 1)
    texts = table["text"].take(pa.array(giver))
    nothing = pa.nulls(len(table), pa.float32())
    moved = table.set_column(table.schema.get_field_index("text"), "text", texts)
    return moved.set_column(moved.schema.get_field_index("score"), "score", nothing)
