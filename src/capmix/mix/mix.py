"""Apply a recipe to a pool of any size: two passes over the parts, some shards at a time.

The first pass finds the thresholds, exactly (threshold.py). The second puts the columns of a few
shards side by side, lets DuckDB say which clauses hold for each sample, and writes the rows that
are kept. Nothing grows with the pool; the same input and seed give the same bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.engine.local import cores
from capmix.errors import UserError
from capmix.mix.columns import Column, folders_of, one_array
from capmix.mix.expression import LIST_COLUMN, Threshold
from capmix.mix.functions import fingerprint
from capmix.mix.kinds import common_kinds
from capmix.mix.parts import check_parts, refuse_rewritten, shard_batches
from capmix.mix.plan import RecipePlan, check_types, make_plan
from capmix.mix.recipe import NAME, Recipe, recipe_defaults
from capmix.mix.run import (
    SCHEMA,
    MixRun,
    MixTally,
    find_repeated,
    find_thresholds,
    kept_rows,
    shuffled,
)
from capmix.mix.settings import MixSettings
from capmix.mix.uids import COUNTED, PairSorter, UidList, pairs_of, write_npy
from capmix.pool import Pool
from capmix.settings.tables import table_lines
from capmix.storage.draft import Draft
from capmix.storage.layout import SUBSETS
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

ROWS_AT_ONCE = 200_000
DEFAULTS = {"seed": 0, "npy": False, "functions": {}, "recipe": recipe_defaults()}
# zstd would make it half as large, and mixing a fifth slower. `store_schema` would make readers
# return dictionaries where the column is one here.
PARQUET = {
    "compression": "snappy",
    "use_dictionary": ["shard", "source"],
    "write_statistics": ["shard", "score", "weight"],
    "store_schema": False,
    "write_page_checksum": True,
}


@dataclass
class Summary:
    """What a recipe did: rows by clause, thresholds used, and the mean score by source."""

    name: str
    rows_in: int
    kept: int
    by_clause: dict[str, int]
    thresholds: dict[str, float | None]
    mean_score: dict[str, float | None]
    share_synthetic: float
    sql: str
    dropped: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The summary for people."""
        share = f"{self.share_synthetic:.1%} synthetic"
        lines = [f"{self.name}: {self.kept:,} rows kept of {self.rows_in:,} samples, {share}"]
        rows = [[f"{count:,}", clause] for clause, count in self.by_clause.items()]
        rows += [[f"{count:,}", f"left out: {why}"] for why, count in self.dropped.items()]
        lines += [f"  {line}" for line in table_lines([], rows, "rl")]
        lines += [f"  {text} = {value}" for text, value in self.thresholds.items()]
        scores = [f"{source} {value}" for source, value in self.mean_score.items() if value]
        return lines + ([f"  mean score: {', '.join(scores)}"] if scores else [])


def mix(
    store: Store,
    pool: Pool,
    recipe: Recipe,
    columns: Mapping[str, Column],
    settings: MixSettings = MixSettings(),
    output: str | None = None,
) -> Summary:
    """Write `subsets/<output>.parquet` (default: the recipe's name) unless it is up to date.

    Columns: uid, shard, key, source, k, text, score, weight (how often the row counts). Rows lie in
    pool order. `columns` are what the recipe may use (columns.columns_of). A .npy file beside it
    (see MixSettings) has the uids, sorted, each as often as it counts. Raises UserError for a
    recipe that does not fit the columns or keeps nothing, and for parts that are missing or stale.
    """
    called = output or recipe.name
    if not NAME.fullmatch(called):
        raise UserError(f"--out {called}: expected letters, digits and . _ + -")
    name = f"{SUBSETS}/{called}"
    plan = make_plan(recipe, columns, settings.uids, settings.seed)
    lists = {one: UidList(path) for one, path in settings.uids.items() if _asked(plan, one)}
    parts = check_parts(store, pool, folders_of(plan.columns.values()))
    inputs = parts.digests | {f"list {one}": uids.digest for one, uids in lists.items()}
    config = {"recipe": recipe.model_dump(), "seed": settings.seed, "npy": settings.npy}
    config["functions"] = fingerprint(plan.functions)
    config["columns"] = {one: asdict(column) for one, column in sorted(plan.columns.items())}

    def make(draft: Draft) -> Marker:
        run = MixRun(
            store,
            plan,
            lists,
            shard_batches(parts.rows, ROWS_AT_ONCE),
            parts,
            settings.workers or cores(),
            common_kinds(store, pool, plan.columns),
        )
        _check_types(run)
        summary, samples_kept = _write(run, draft, settings.npy)
        summary.name = called
        refuse_rewritten(store, parts)
        counts = Counts(ok=samples_kept)
        counts.dropped.update(summary.dropped)
        return Marker(inputs, config, summary.rows_in, counts, {"summary": vars(summary)})

    marker, _ = once(store, name, inputs, config, make, DEFAULTS, [f"{name}.parquet"])
    return Summary(**marker.extra["summary"])


def _check_types(run: MixRun) -> None:
    """See plan.check_types; a recipe that SQL refuses is found before anything is read."""
    first = run.batches[0][:1] if run.batches else []
    run.connection.register("batch", run.read(first, run.plan.columns).slice(0, 0))
    check_types(run.plan, run.connection)
    run.connection.unregister("batch")


def _write(run: MixRun, draft: Draft, npy: bool) -> tuple[Summary, int]:
    """Write the subset; returns its summary, and how many samples have a row in it."""
    with run.store.scratch() as scratch, draft.writing(f"{draft.part}.parquet") as stream:
        tally = MixTally(len(run.plan.steps))
        values = find_thresholds(run)
        repeated = find_repeated(run, values) if run.plan.recipe.distinct else None
        clauses = run.plan.recipe.clauses
        all_raw = all(clause.source == "raw" for clause in clauses)
        sorter = PairSorter(scratch, COUNTED) if npy or all_raw else None
        batches = kept_rows(run, values, tally, repeated)
        if run.plan.recipe.shuffle:
            batches = iter([shuffled(run, pa.concat_tables(batches))])
        with pq.ParquetWriter(stream, SCHEMA, **PARQUET) as writer:
            for table in batches:
                if len(table):
                    writer.write_table(table)
                if sorter is not None and not _add_pairs(sorter, table, must=npy):
                    sorter = None
        summary = _summary(run.plan, tally, values)
        if sorter is not None:
            with draft.writing(f"{draft.part}.npy") as npy_stream:
                write_npy(npy_stream, sorter.sorted(), tally.weight)
    return summary, tally.samples_kept


def _add_pairs(sorter: PairSorter, table: pa.Table, must: bool) -> bool:
    """False where uids are not of DataComp's form and need not be."""
    try:
        pairs = pairs_of(one_array(table["uid"]))
    except UserError:
        if must:
            raise
        sorter.close()
        return False
    counted = np.empty(len(pairs), COUNTED)
    counted["f0"], counted["f1"], counted["times"] = pairs["f0"], pairs["f1"], table["weight"]
    sorter.add(counted)
    return True


def _summary(plan: RecipePlan, tally: MixTally, values: Mapping[Threshold, float]) -> Summary:
    """Raises UserError where nothing was kept."""
    shown = {str(t): value if math.isfinite(value) else None for t, value in values.items()}
    if not tally.rows:
        short = "".join(
            f". {t}: so few samples have a value that DataComp keeps none"
            for t, value in values.items()
            if math.isnan(value)
        )
        clauses = "; ".join(map(str, plan.steps))
        raise UserError(
            f"recipe {plan.recipe.name} selects none of {tally.samples} samples. "
            f"Clauses: {clauses}. Thresholds: {shown}{short}"
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
    )


def _asked(plan: RecipePlan, name: str) -> bool:
    return LIST_COLUMN.format(name) in plan.lists
