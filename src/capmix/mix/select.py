"""Select the samples for which a condition holds, shard by shard (`--where`)."""

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
from capmix.mix.run import MixRun, chosen_samples, find_thresholds, with_scales
from capmix.pool import Pool, Shard
from capmix.storage.store import Store

ABOUT = ("uid", "key")


def names_in(expression: str, option: str = "--where") -> frozenset[str]:
    """Return the names of the columns in a condition, for Workspace.recipe_columns.

    Raises UserError, prefixed with `option` and the expression, if it is not valid in recipes.
    """
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
    """Yield, for each of `shards` (default: all), uid and key of the samples that meet a condition.

    `expression` is a condition as in recipes. Samples are in pool order, without those that failed
    in the index. `columns` are those of Workspace.recipe_columns for names_in(expression).
    Thresholds and scales in the condition are computed over the whole pool.

    Raises UserError, prefixed with `option` and the expression, at the first step, if the
    expression is not valid in recipes, if a column is unknown, and if parts are missing or stale;
    and while reading, if parts are rewritten meanwhile.
    """
    plan = condition_plan(expression, columns, seed, option)
    chosen = pool.shards if shards is None else list(shards)
    if not chosen:
        return
    folders = folders_of(plan.columns.values())
    parts = check_parts(store, pool.shards if plan.is_of_pool else chosen, folders)
    kinds = common_kinds(store, pool, plan.columns)
    reader = BatchReader(store, plan.columns, kinds, {})
    batches = shard_batches(parts.rows, ROWS_AT_ONCE)
    run = MixRun(plan, reader, parts, batches, Threads(cores()))
    check_expressions(run)
    run = with_scales(run)
    sql = run.plan.sql(find_thresholds(run).values, with_text=False)
    run = replace(run, batches=[[shard.name] for shard in chosen])
    found = run.each_batch(partial(chosen_samples, run, sql, ABOUT), option)
    yield from zip(chosen, found, strict=True)
    refuse_rewritten(store, parts.of([shard.name for shard in chosen]))
