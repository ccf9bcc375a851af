"""The samples for which a condition holds, shard by shard: what `--where` chooses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from capmix.engine.local import cores
from capmix.engine.mapped import Threads
from capmix.mix.batch import BatchReader
from capmix.mix.columns import Column, folders_of
from capmix.mix.expression import parse
from capmix.mix.kinds import common_kinds
from capmix.mix.mix import ROWS_AT_ONCE, check_expressions
from capmix.mix.parts import check_parts, refuse_rewritten, shard_batches
from capmix.mix.plan import condition_plan
from capmix.mix.run import MixRun, chosen_samples, find_thresholds
from capmix.pool import Pool, Shard
from capmix.storage.store import Store

ABOUT = ("uid", "key")


def names_in(expression: str, option: str = "--where") -> frozenset[str]:
    """The names of columns in a condition, for Workspace.recipe_columns. Raises UserError, which
    begins with `option` and the expression, for what recipes refuse."""
    return parse(expression, f"{option} {expression!r}").columns


def matching(
    store: Store,
    pool: Pool,
    columns: Mapping[str, Column],
    expression: str,
    shards: Sequence[Shard] | None = None,
    option: str = "--where",
    seed: int = 0,
) -> Iterator[tuple[Shard, pa.Table]]:
    """uid and key of those samples of each of `shards` (default: all) for which `expression`, a
    condition as recipes have it, is true; in pool order, without samples that failed in the index.

    `columns` are those of Workspace.recipe_columns for names_in(expression). A threshold in the
    condition is that of the whole pool. Raises UserError, which begins with `option` and the
    expression, at the first step: for an expression that recipes refuse, an unknown column, and
    parts that are missing or stale; while reading, for parts that are written again meanwhile.
    """
    plan = condition_plan(expression, columns, seed, option)
    chosen = pool.shards if shards is None else list(shards)
    if not chosen:
        return
    folders = folders_of(plan.columns.values())
    parts = check_parts(store, pool.shards if plan.thresholds else chosen, folders)
    kinds = common_kinds(store, pool, plan.columns)
    reader = BatchReader(store, plan.columns, kinds, {})
    batches = shard_batches(parts.rows, ROWS_AT_ONCE)
    run = MixRun(plan, reader, parts, batches, Threads(cores()))
    check_expressions(run)
    sql = plan.sql(find_thresholds(run).values, with_text=False)
    run = replace(run, batches=[[shard.name] for shard in chosen])
    found = run.each_batch(partial(chosen_samples, run, sql, ABOUT), option)
    yield from zip(chosen, found, strict=True)
    refuse_rewritten(store, parts.of([shard.name for shard in chosen]))
