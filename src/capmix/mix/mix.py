"""Apply a recipe: turn its clauses into SQL over the sample table and write the subset."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.recipe import Clause, Recipe, check_fraction
from capmix.mix.table import query, sample_table
from capmix.pool import Pool
from capmix.score.stage import scores_folder, texts_folder
from capmix.store import Counts, Marker, Store, once

FOLDER = "subsets"
THRESHOLD = re.compile(r"\bthreshold\s*\(\s*(\w+)\s*,\s*([^(),]+?)\s*\)", re.IGNORECASE)


@dataclass(frozen=True)
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

    def lines(self) -> list[str]:
        """The summary for people."""
        share = f"{self.share_synthetic:.1%} synthetic"
        lines = [f"{self.name}: {self.kept:,} of {self.rows_in:,} samples kept, {share}"]
        lines += [f"  {count:>9,}  {clause}" for clause, count in self.by_clause.items()]
        lines += [f"  {text} = {value}" for text, value in self.thresholds.items()]
        return lines


def mix(
    store: Store,
    pool: Pool,
    recipe: Recipe,
    scorer: str | None,
    sources: Sequence[str],
    seed: int = 0,
    output: str | None = None,
) -> Summary:
    """Write `subsets/<output>.parquet` (default: the recipe's name) unless it is up to date.

    Columns: uid, shard, key, source, k, text, score. Rows lie in pool order. `sources` are those
    whose columns the recipe may use. Raises UserError for a recipe that does not fit the table.
    """
    name = f"{FOLDER}/{output or recipe.name}"
    inputs = _fingerprints(store, pool, scorer, sources)
    config = {
        "recipe": recipe.model_dump(),
        "scorer": scorer,
        "sources": list(sources),
        "seed": seed,
    }

    def make() -> Marker:
        with sample_table(store, pool, scorer, sources, seed) as connection:
            table, summary = select(connection, recipe)
        store.write_table(f"{name}.parquet", table)
        counts = Counts(ok=summary.kept)
        if summary.rows_in > summary.kept:
            counts.dropped["no_clause_held"] = summary.rows_in - summary.kept
        return Marker(inputs, config, summary.rows_in, counts, {"summary": vars(summary)})

    marker, _ = once(store, name, inputs, config, make)
    return Summary(**marker.extra["summary"])


def select(connection: duckdb.DuckDBPyConnection, recipe: Recipe) -> tuple[pa.Table, Summary]:
    """The rows that `recipe` keeps from the table `samples`, and its summary."""
    columns = _columns(connection)
    thresholds: dict[str, float | None] = {}
    conditions = [
        _condition(connection, recipe, clause, columns, thresholds) for clause in recipe.clauses
    ]
    sql = _sql(recipe.clauses, conditions, columns)
    try:
        table = query(connection, sql)
    except duckdb.Error as error:
        raise UserError(f"recipe {recipe.name}: {_first_line(error)}") from error
    total = query(connection, "select count(*) as n from samples").column("n")[0].as_py()
    if not len(table):
        raise UserError(
            f"recipe {recipe.name} selects none of {total} samples. "
            f"Clauses: {'; '.join(_describe(c) for c in recipe.clauses)}. Thresholds: {thresholds}"
        )
    clause_numbers = table.column("clause").to_pylist()
    by_clause = {
        f"{number + 1}. {_describe(clause)}": clause_numbers.count(number)
        for number, clause in enumerate(recipe.clauses)
    }
    table = table.drop_columns(["clause"])
    if recipe.shuffle:
        table = _shuffled(table, connection)
    sources = table.column("source").to_pylist()
    summary = Summary(
        name=recipe.name,
        rows_in=total,
        kept=len(table),
        by_clause=by_clause,
        thresholds=thresholds,
        mean_score=_mean_scores(table),
        share_synthetic=sum(source != "raw" for source in sources) / len(sources),
        sql=sql,
    )
    return table, summary


def threshold(scores: np.ndarray, fraction: float) -> float:
    """The score that the top `fraction` of a pool reaches, by DataComp's rule (apply_filter.py).

    The (n + 1)-th largest of float32 `scores` (N,), n = int(N * fraction), where NaN counts in N
    and sorts last. Where fewer rows than that have a score, -inf: all of them pass.
    """
    position = int(len(scores) * fraction)
    present = np.sort(scores[~np.isnan(scores)])[::-1]
    return float(present[position]) if position < len(present) else -math.inf


def _condition(
    connection: duckdb.DuckDBPyConnection,
    recipe: Recipe,
    clause: Clause,
    columns: list[str],
    thresholds: dict[str, float | None],
) -> str:
    """The clause's condition as checked SQL, its thresholds computed and put in as FLOAT."""
    place = f"recipe {recipe.name}, clause '{_describe(clause)}'"
    if f"{clause.source}_text" not in columns:
        known = ", ".join(c.removesuffix("_text") for c in columns if c.endswith("_text"))
        raise UserError(f"{place}: no source {clause.source!r}; sources here: {known}")

    def value(match: re.Match[str]) -> str:
        column, written = match.groups()
        if column not in columns:
            raise UserError(f"{place}: no column {column!r}; columns: {', '.join(columns)}")
        try:
            fraction = check_fraction(_number(written))
        except ValueError as error:
            raise UserError(f"{place}: {error}") from error
        rows = query(connection, f"select {column}::FLOAT as v from samples").column("v")
        found = threshold(rows.to_numpy().astype(np.float32), fraction)
        thresholds[f"threshold({column}, {fraction:g})"] = None if math.isinf(found) else found
        return f"('{found!r}'::FLOAT)"

    condition = THRESHOLD.sub(value, clause.where)
    try:
        statements = duckdb.extract_statements(f"select ({condition}\n) from samples")
        if len(statements) != 1:
            raise UserError(f"{place}: expected one SQL condition")
        query(connection, f"select typeof(any_value(({condition}\n)::BOOLEAN)) from samples")
    except duckdb.Error as error:
        raise UserError(f"{place}: {_first_line(error)}. Columns: {', '.join(columns)}") from error
    return condition


def _number(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written.strip("'\"")


def _sql(clauses: list[Clause], conditions: list[str], columns: list[str]) -> str:
    """First clause that holds, and that clause's text and score, per sample in pool order."""
    numbered = list(enumerate(zip(clauses, conditions, strict=True)))
    cases = "\n".join(
        f"    when coalesce(({condition}\n), false) and {clause.source}_text is not null then {i}"
        for i, (clause, condition) in numbered
    )

    def pick(kind: str, missing: str) -> str:
        choices = " ".join(
            f"when {i} then {clause.source}_{kind}"
            for i, (clause, _) in numbered
            if f"{clause.source}_{kind}" in columns
        )
        return f"case clause {choices} end" if choices else missing

    sources = " ".join(f"when {i} then '{clause.source}'" for i, (clause, _) in numbered)
    return f"""with chosen as (
  select *, case
{cases}
  end as clause from samples)
select uid, shard, key, case clause {sources} end as source, 0::INTEGER as k,
  {pick("text", "null")} as text, ({pick("score", "null")})::FLOAT as score, clause
from chosen where clause is not null order by shard, position"""


def _shuffled(table: pa.Table, connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """Each text moves to the next sample in the order of `draw`: none keeps its own place."""
    draws = query(connection, "select uid, draw from samples").to_pydict()
    drawn = dict(zip(draws["uid"], draws["draw"], strict=True))
    order = sorted(range(len(table)), key=lambda i: drawn[table.column("uid")[i].as_py()])
    giver = np.empty(len(table), np.int64)
    giver[order] = np.roll(order, 1)
    texts = table.column("text").take(pa.array(giver))
    nothing = pa.nulls(len(table), pa.float32())
    moved = table.set_column(table.schema.get_field_index("text"), "text", texts)
    return moved.set_column(moved.schema.get_field_index("score"), "score", nothing)


def _mean_scores(table: pa.Table) -> dict[str, float | None]:
    grouped = table.group_by("source").aggregate([("score", "mean")]).to_pylist()
    return {
        row["source"]: row["score_mean"] and round(row["score_mean"], 6)
        for row in sorted(grouped, key=lambda row: row["source"])
    }


def _fingerprints(
    store: Store, pool: Pool, scorer: str | None, sources: Sequence[str]
) -> dict[str, str]:
    folders = [texts_folder(source) for source in ("raw", *sources)]
    folders += [scores_folder(scorer, source) for source in sources] if scorer else []
    names = [f"{folder}/{shard.name}" for folder in folders for shard in pool.shards]
    return {name: store.fingerprint(name) for name in dict.fromkeys(names)}


def _describe(clause: Clause) -> str:
    return f"{clause.source} where {clause.where}"


def _columns(connection: duckdb.DuckDBPyConnection) -> list[str]:
    names: list[str] = query(connection, "select * from samples limit 0").column_names
    return names


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".!")
