"""A reference implementation of mixing, for comparison in tests.

It joins all columns of all parts in one table, runs SQL on it and copies the texts, which is slow.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.mix.columns import Column, folders_of, one_array, read_samples
from capmix.mix.expression import LIST_COLUMN, PoolScale, Threshold
from capmix.mix.parts import check_parts
from capmix.mix.plan import DRAW, RecipePlan, locked_connection, make_plan
from capmix.mix.recipe import Recipe
from capmix.mix.settings import MixSettings
from capmix.mix.subset import RESOLVED
from capmix.mix.uids import UidList
from capmix.pool import Pool
from capmix.storage.store import Store

KINDS = {"text": pa.string(), "k": pa.int32(), "score": pa.float32()}


def mixed(
    store: Store,
    pool: Pool,
    recipe: Recipe,
    columns: Mapping[str, Column],
    settings: MixSettings,
) -> list[dict[str, Any]]:
    """Return the rows of the subset: uid, shard, key, source, k, text, score, weight, copy."""
    plan = make_plan(recipe, columns, settings.uids, settings.seed)
    parts = check_parts(store, pool.shards, folders_of(plan.columns.values()))
    tables = []
    for shard in pool.shards:
        table = read_samples(store, shard.name, plan.columns, parts)
        names = pa.repeat(pa.scalar(shard.name), len(table))
        tables.append(table.append_column("shard", names))
    batch = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    for name, path in settings.uids.items():
        found = pa.array(UidList(path).times(one_array(batch["uid"])))
        batch = batch.append_column(LIST_COLUMN.format(name), found)
    connection = locked_connection(plan.functions)
    connection.register("batch", batch)

    def query(sql: str) -> pa.Table:
        return connection.sql(sql).to_arrow_table()

    draw = DRAW.format(name="draw", seed=plan.seed)
    of_all = f"(select *, {draw}::FLOAT as draw from batch) as samples"

    def of_column(sql: str) -> np.ndarray:
        found = query(f"select ({sql})::FLOAT as v from {of_all}")["v"]
        return np.asarray(pc.fill_null(found, np.nan).to_numpy())

    plan = plan.scaled({one: _line(one, of_column(one.value)) for one in plan.scales})
    values = {one: _threshold(one, of_column(one.sql)) for one in plan.thresholds}
    answers = query(plan.sql(values).rpartition("\nfrom ")[0] + f" from {of_all}")
    samples, clauses, weights = _chosen(plan, answers)
    rows = _rows(plan, batch, samples, clauses, weights)
    if recipe.distinct:
        of_row = query(f'select md5("{recipe.distinct}"::VARCHAR) as v from batch')["v"].to_pylist()
        first: dict[Any, int] = {}
        for sample in samples.tolist():
            first.setdefault(of_row[sample], sample)
        stays = [of_row[s] is None or first[of_row[s]] == s for s in samples.tolist()]
        rows = rows.filter(pa.array(stays, pa.bool_()))
    return rows.select(list(RESOLVED)).to_pylist()


def _line(scale: PoolScale, values: np.ndarray) -> tuple[float, float]:
    """Return what is subtracted from a value, and what it is then divided by."""
    known = values[np.isfinite(values)].tolist()
    if not known:
        return 0.0, 1.0
    if scale.function == "zscore":
        return statistics.mean(known), statistics.pstdev(known) or 1.0
    return min(known), max(known) - min(known) or 1.0


def _threshold(threshold: Threshold, values: np.ndarray) -> float:
    """Compute a threshold by sorting, like DataComp; NaN sorts last."""
    n = int(len(values) * threshold.fraction)
    ordered = -np.sort(-values[~np.isnan(values)])
    if n < len(ordered):
        return float(ordered[n])
    return math.nan if threshold.is_datacomp else -math.inf


def _chosen(plan: RecipePlan, answers: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    holds = np.column_stack([answers[f"c{i}"].to_numpy() for i in range(len(plan.steps))])
    if plan.recipe.keep == "first":
        holds = holds & (np.cumsum(holds, axis=1) == 1)
    samples, clauses = np.nonzero(holds)
    weights: np.ndarray = np.ones(len(samples), np.int32)
    if plan.is_weighted:
        given = [pc.fill_null(answers[f"w{i}"], 0).to_numpy() for i in range(len(plan.steps))]
        wanted = np.nan_to_num(np.column_stack(given)[samples, clauses], nan=0.0)
        wanted = wanted.clip(0, plan.recipe.max_repeats)
        whole = np.floor(wanted)
        more = answers["repeat_draw"].to_numpy()[samples] < wanted - whole
        weights = (whole + more).astype(np.int32)
        samples, clauses, weights = (a[weights > 0] for a in (samples, clauses, weights))
    return samples, clauses, weights


def _rows(
    plan: RecipePlan,
    batch: pa.Table,
    samples: np.ndarray,
    clauses: np.ndarray,
    weights: np.ndarray,
) -> pa.Table:
    found: dict[str, list[Any]] = {"text": [], "k": [], "score": []}
    for name, values in found.items():
        of_clause = {}
        for i, step in enumerate(plan.steps):
            column = f"{step.clause.source}_{name}"
            absent = [None] * len(batch)
            of_clause[i] = batch[column].to_pylist() if column in batch.column_names else absent
        values += [of_clause[c][s] for s, c in zip(samples.tolist(), clauses.tolist(), strict=True)]
    copies, before = [], dict[int, int]()
    for sample, weight in zip(samples.tolist(), weights.tolist(), strict=True):
        copies.append(before.get(sample, 0))
        before[sample] = copies[-1] + weight
    sources = [plan.source_of(step) for step in plan.steps]
    picks = [max(plan.columns[f"{step.clause.source}_text"].pick or 0, 0) for step in plan.steps]
    asked = [picks[clause] for clause in clauses.tolist()]  # also if that caption does not exist
    numbers = [k or pick for k, pick in zip(found["k"], asked, strict=True)]
    about = {
        name: one_array(batch[name]).take(pa.array(samples)) for name in ("uid", "shard", "key")
    }
    return pa.table(
        {
            **about,
            "source": pa.array([sources[clause] for clause in clauses.tolist()], pa.string()),
            "k": pa.array(numbers, pa.int32()),
            "text": pa.array([text or "" for text in found["text"]], pa.string()),
            "score": pa.array(found["score"], pa.float32()),
            "weight": pa.array(weights),
            "copy": pa.array(copies, pa.int32()),
        }
    )
