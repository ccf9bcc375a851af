"""Apply a recipe to a pool of any size: two passes over the parts, a few shards at a time.

The first pass computes the exact thresholds (threshold.py). The second joins the columns of a few
shards, evaluates with DuckDB which clauses hold for each sample, and writes references to the kept
rows (subset.py). The same input and seed produce the same bytes.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.mapped import mapper
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.mix.batch import BatchReader
from capmix.mix.columns import Column, folders_of, one_array
from capmix.mix.drawn import DrawnRows, find_drawn
from capmix.mix.exclude_files import ExcludeList
from capmix.mix.excluded import ExcludedCounts, find_excluded, open_exclusion
from capmix.mix.expression import DATACOMP_THRESHOLD, LIST_COLUMN
from capmix.mix.functions import fingerprint
from capmix.mix.kinds import common_kinds
from capmix.mix.parts import Parts, check_parts, refuse_rewritten, shard_batches
from capmix.mix.plan import RecipePlan, check_types, make_plan
from capmix.mix.recipe import NAME, Recipe, recipe_defaults
from capmix.mix.run import (
    KEEP_AT_MOST,
    Kept,
    MixRun,
    MixTally,
    Thresholds,
    With,
    find_repeated,
    find_thresholds,
    kept_rows,
    shuffled,
    with_scales,
)
from capmix.mix.settings import MixSettings
from capmix.mix.subset import shards_file, subset_file
from capmix.mix.subset_writer import SubsetWriter
from capmix.mix.uids import COUNTED, PairSorter, UidList, pairs_of, write_npy
from capmix.pool import Pool
from capmix.settings.counted import counted
from capmix.settings.tables import table_lines
from capmix.storage.draft import Draft
from capmix.storage.layout import RAW, SAMPLES, SUBSETS, texts_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

log = logging.getLogger(__name__)
ROWS_AT_ONCE = 400_000
OPTIONAL = {"short", "drawn", "excluded"}  # of a summary, left out if empty
OF_CONFIG = {"seed", "npy", "texts"}
DEFAULTS = {
    "seed": 0,
    "npy": False,
    "texts": False,
    "functions": {},
    "recipe": recipe_defaults(),
}


@dataclass
class Summary:
    """The result of a recipe: rows by clause, thresholds, and the mean score by source.

    `short` has an entry for each threshold whose value fewer samples have than its fraction
    requests: the requested number, and the number with a value. `drawn` has the counts of a recipe
    that draws rows: asked, drawn, candidates, batch and batches. `excluded` has the ExcludedCounts
    of each kind of `--exclude`.
    """

    name: str
    rows_in: int
    kept: int
    by_clause: dict[str, int]
    thresholds: dict[str, float | None]
    mean_score: dict[str, float | None]
    share_synthetic: float
    sql: str
    dropped: dict[str, int] = field(default_factory=dict)
    short: dict[str, tuple[int, int]] = field(default_factory=dict)
    drawn: dict[str, int] = field(default_factory=dict)
    excluded: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the summary as lines to print."""
        share = f"{self.share_synthetic:.1%} synthetic"
        kept = f"{counted(self.kept, 'row')} kept of {counted(self.rows_in, 'sample')}"
        lines = [f"{self.name}: {kept}, {share}"]
        rows = [[f"{count:,}", clause] for clause, count in self.by_clause.items()]
        rows += [[f"{count:,}", f"left out: {why}"] for why, count in self.dropped.items()]
        lines += [f"  {line}" for line in table_lines([], rows, "rl")]
        lines += [f"  {ExcludedCounts(**one).line()}" for one in self.excluded]
        if self.drawn:
            lines.append(
                "  {drawn:,} drawn of {candidates:,} in {batches:,} batches of up to {batch:,}"
                "".format(**self.drawn)
            )
        lines += [f"  {text} = {value}" for text, value in self.thresholds.items()]
        lines += [f"  {line}" for line in self.shortages()]
        scores = [f"{source} {value}" for source, value in self.mean_score.items() if value]
        return lines + ([f"  mean score: {', '.join(scores)}"] if scores else [])

    def add_excluded(self, excluded: Sequence[ExcludedCounts]) -> None:
        """Count the excluded samples as samples of the pool that are left out."""
        self.excluded = [asdict(one) for one in excluded]
        left_out = {f"excluded by {one.kind}": one.samples for one in excluded if one.samples}
        self.dropped = left_out | self.dropped
        self.rows_in += sum(left_out.values())

    def shortages(self) -> list[str]:
        """Return one line for each threshold that is undefined because too few samples have a
        value, and one if fewer rows are drawn than requested."""
        left = self.rows_in - sum(one["samples"] for one in self.excluded)
        found = [_shortage(name, *two, left) for name, two in self.short.items()]
        if self.drawn and self.drawn["drawn"] < self.drawn["asked"]:
            found.append(
                "{drawn:,} of {asked:,} rows are drawn: all {candidates:,} rows reached the cap"
                "".format(**self.drawn)
            )
        return found


def _shortage(threshold: str, asked: int, there: int, samples: int) -> str:
    passes = "none" if threshold.startswith(DATACOMP_THRESHOLD) else "each"
    return (
        f"{threshold} is undefined: the fraction requests {asked:,} of {samples:,} samples, but "
        f"{there:,} have a value; {passes} of them passes"
    )


def mix(
    store: Store,
    pool: Pool,
    recipe: Recipe,
    columns: Mapping[str, Column],
    settings: MixSettings = MixSettings(),
    output: str | None = None,
    engine: EngineSettings = EngineSettings(),
) -> Summary:
    """Write `subsets/<output>.parquet` (default: the recipe's name; see subset.py) unless it is up
    to date.

    `columns` are the columns that the recipe can use (columns.columns_of). The .npy file beside it
    (see MixSettings) has the sorted uids, each repeated by its weight. Raises UserError if the
    recipe does not fit the columns or keeps no sample, and if parts are missing or stale.
    """
    called = output or recipe.name
    if not NAME.fullmatch(called):
        raise UserError(f"--out {called}: expected letters, digits and . _ + -")
    name = f"{SUBSETS}/{called}"
    plan = make_plan(recipe, columns, settings.uids, settings.seed)
    lists = {one: UidList(path) for one, path in settings.uids.items() if _uses_list(plan, one)}
    exclusion = open_exclusion(settings.exclude, columns)
    for listed in exclusion.lists.values():
        _report_faults(called, listed, settings.strict)
    needed = [*plan.columns.values(), *exclusion.needed.values()]
    parts = check_parts(store, pool.shards, folders_of(needed))
    inputs = (
        parts.digests
        | exclusion.digests
        | {f"list {one}": uids.digest for one, uids in lists.items()}
    )
    config = {"recipe": recipe.model_dump()} | settings.model_dump(include=OF_CONFIG)
    config["functions"] = fingerprint(plan.functions)
    config["columns"] = {one: asdict(column) for one, column in sorted(plan.columns.items())}

    def without_excluded(batches: list[list[str]]) -> tuple[Parts, list[ExcludedCounts]]:
        if not exclusion.lists:
            return parts, []
        kinds = common_kinds(store, pool, exclusion.needed)
        reader = BatchReader(store, exclusion.needed, kinds, {})
        return find_excluded(exclusion, reader, parts, batches)

    def make(draft: Draft) -> Marker:
        named = {name: plan.columns[name] for name in _read(plan) & plan.columns.keys()}
        kinds = common_kinds(store, pool, named)
        reader = BatchReader(store, plan.columns, kinds, lists)
        batches = shard_batches(parts.rows, ROWS_AT_ONCE)
        remaining, excluded = without_excluded(batches)
        with mapper(engine, sum(parts.rows.values()) > KEEP_AT_MOST) as maps:
            run = MixRun(plan, reader, remaining, batches, maps)
            check_expressions(run)
            summary, samples_kept = _write(run, draft, called, settings)
        summary.name = called
        summary.add_excluded(excluded)
        if settings.strict:
            _report_shortages(summary, strict=True)
        known = {name: one for name, one in vars(summary).items() if name not in OPTIONAL or one}
        sources = {plan.source_of(step) for step in plan.steps}
        refuse_rewritten(store, parts, {SAMPLES, *map(texts_folder, sources)})
        counts = Counts(ok=samples_kept)
        counts.dropped.update(summary.dropped)
        return Marker(inputs, config, summary.rows_in, counts, {"summary": known})

    marker, _ = once(store, name, inputs, config, make, DEFAULTS, [subset_file(called)])
    summary = Summary(**marker.extra["summary"])
    if summary.drawn and summary.drawn["batch"] >= summary.drawn["candidates"]:
        log.warning(
            "recipe %s: each batch of up to %s draws all %s rows, so the logits have no effect; "
            "use a smaller batch",
            called, f"{summary.drawn['batch']:,}", f"{summary.drawn['candidates']:,}",
        )  # fmt: skip
    _report_shortages(summary, settings.strict)
    return summary


def _report_shortages(summary: Summary, strict: bool) -> None:
    """Log the shortages, or raise UserError if `strict`."""
    for line in summary.shortages():
        if strict:
            raise UserError(f"recipe {summary.name}: {line} (--strict)")
        log.warning("recipe %s: %s", summary.name, line)


def _report_faults(called: str, listed: ExcludeList, strict: bool) -> None:
    """Log the malformed lines of `--exclude`, or raise UserError if `strict`."""
    if not listed.malformed:
        return
    line = (
        f"recipe {called}: --exclude: {counted(listed.malformed, 'line')} with no valid "
        f"{listed.kind}; the first is {listed.example}"
    )
    if strict:
        raise UserError(f"{line} (--strict)")
    log.warning("%s", line)


def _read(plan: RecipePlan) -> frozenset[str]:
    """Return the names of the columns that the plan reads."""
    distinct = plan.recipe.distinct
    return plan.named | ({distinct} if distinct else set())


def check_expressions(run: MixRun) -> None:
    """Check the recipe's SQL on an empty table (plan.check_types), before any sample is read."""
    first = run.parts.of(run.batches[0][:1])
    batch = run.reader.read(first, _read(run.plan)).table.slice(0, 0)
    run.connection.register("batch", batch)
    check_types(run.plan, run.connection)
    run.connection.unregister("batch")


def _write(run: MixRun, draft: Draft, called: str, settings: MixSettings) -> tuple[Summary, int]:
    """Write the subset; return its summary and the number of samples with a row in it."""
    recipe, store = run.plan.recipe, run.reader.store
    composes = run.plan.composes
    all_raw = not composes and all(clause.source == RAW for clause in recipe.clauses)
    read: With = "uids" if settings.npy or all_raw else "references"
    read = "texts" if settings.texts or recipe.shuffle or composes else read
    sources = [run.plan.source_of(step) for step in run.plan.steps]
    tally = MixTally(len(run.plan.steps))
    with store.scratch() as scratch, draft.writing(subset_file(called)) as stream:
        run = with_scales(run)
        found = find_thresholds(run)
        values = found.values
        for one, counts in found.short.items() if settings.strict else ():
            line = _shortage(str(one), *counts, found.samples)
            raise UserError(f"recipe {called}: {line} (--strict)")
        repeated = find_repeated(run, values) if recipe.distinct else None
        drawn = find_drawn(run, values, repeated) if recipe.sample else None
        times = None if drawn is None else drawn.times
        sorter = PairSorter(scratch, COUNTED) if settings.npy or all_raw else None
        waiting: list[pa.Table] = []
        with SubsetWriter(stream, sources, read == "texts", run.parts) as writer:
            for kept in kept_rows(run, values, tally, repeated, read, times):
                table = writer.table(kept)
                if recipe.shuffle:
                    waiting.append(table)
                else:
                    writer.write(table)
                if sorter is not None and not _add_pairs(sorter, kept, must=settings.npy):
                    sorter = None
            if waiting:
                writer.write(shuffled(run, pa.concat_tables(waiting)))
        draft.write_table(shards_file(called), writer.shards())
        summary = _summary(run.plan, tally, found, drawn)
        if sorter is not None:
            with draft.writing(f"{draft.part}.npy") as npy_stream:
                write_npy(npy_stream, sorter.sorted(), tally.weight)
    return summary, tally.samples_kept


def _add_pairs(sorter: PairSorter, kept: Kept, must: bool) -> bool:
    """Add the uids to the sorter.

    Return False if they are not in DataComp's format, or raise UserError if they `must` be.
    """
    if kept.texts is None:
        return True
    try:
        pairs = pairs_of(one_array(kept.texts["uid"]))
    except UserError:
        if must:
            raise
        sorter.close()
        return False
    counted = np.empty(len(pairs), COUNTED)
    counted["f0"], counted["f1"], counted["times"] = pairs["f0"], pairs["f1"], kept.weight
    sorter.add(counted)
    return True


def _summary(
    plan: RecipePlan, tally: MixTally, found: Thresholds, drawn: DrawnRows | None
) -> Summary:
    """Build the summary. Raises UserError if no row was kept."""
    values = found.values
    shown = {str(t): value if math.isfinite(value) else None for t, value in values.items()}
    if not tally.rows:
        short = "".join(
            f". {t}: too few samples have a value, so DataComp's rule keeps none"
            for t, value in values.items()
            if math.isnan(value)
        )
        clauses = "; ".join(map(str, plan.steps))
        everything = [one.clause for one in plan.steps if str(one.clause.where).strip() == "true"]
        unweighted = [one.source for one in everything if str(one.weight).strip() == "1"]
        sources = ", ".join(dict.fromkeys(unweighted))
        textless = f". No sample has a text from {sources}" if sources else ""
        limits = f". Thresholds: {shown}" if shown else ""
        raise UserError(
            f"recipe {plan.recipe.name} selects none of {counted(tally.samples, 'sample')}. "
            f"Clauses: {clauses}{limits}{short}{textless}"
        )
    counts = enumerate(zip(plan.steps, tally.by_clause, strict=True), start=1)
    return Summary(
        name=plan.recipe.name,
        rows_in=tally.samples,
        kept=tally.rows,
        by_clause={f"{number}. {step}": int(count) for number, (step, count) in counts},
        thresholds=shown,
        mean_score=tally.mean_scores(),
        share_synthetic=1 - tally.of_source.get("raw", 0) / tally.rows,
        sql=plan.sql(values),
        dropped={why: count for why, count in tally.dropped.items() if count},
        short={str(threshold): counts for threshold, counts in found.short.items()},
        drawn={} if drawn is None else drawn.counts(),
    )


def _uses_list(plan: RecipePlan, name: str) -> bool:
    return LIST_COLUMN.format(name) in plan.lists
