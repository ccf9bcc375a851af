"""Judge all claims from the grids of a world that were run, and write them as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

import capmix
from world.claims import (
    AT_EQUAL_SIZE,
    CLAIMS,
    FILTERED,
    MATCHED,
    MIX,
    Judged,
    Metric,
    benchmark_misleads,
    best_fractions,
    covers_more,
    diversity_falls,
    in_both,
    judged,
    quality_matters_more,
    same_order,
)
from world.grid import FRACTION, OTHER_FRACTIONS, Grid, measuring, pool_folder
from world.models import CAPTIONERS, World

FRACTIONS = sorted(round(100 * one) for one in (FRACTION, *OTHER_FRACTIONS))
Found = dict[tuple[str, Metric], list[float]]
Measures = dict[str, dict[str, Any]]  # by name of a grid


def judge(world: World, grids: Sequence[Grid], measures: Measures) -> list[Judged]:
    """Return the verdicts of all claims, from the results of the grids, smallest scale first.

    `measures` are those of `measured`.
    """
    values = {grid.name: read_cells(world, grid) for grid in grids}
    rows: list[Judged] = []
    for grid in grids:
        if grid.loss == "clip":
            has_studies = any(recipe == MATCHED for recipe, _ in values[grid.name])
            claims = (*CLAIMS, *(AT_EQUAL_SIZE if has_studies else ()))
            of_grid = judged(values[grid.name], grid.name, claims)
            rows += [*of_grid, *in_both(of_grid)]
    usual = [grid for grid in grids if grid.noise == "usual" and grid.loss == "clip"]
    rows += diversity_falls({grid.name: _trigrams(measures[grid.name]) for grid in usual})
    for grid in usual:
        rows += best_fractions(values[grid.name], grid.name, FRACTIONS)
        mixed, filtered = (_covered(world, grid, name) for name in (MIX, FILTERED))
        rows += covers_more(mixed, filtered, grid.name)
        if grid.captioners == CAPTIONERS:
            rows += benchmark_misleads(values[grid.name], grid.name, _cider(measures[grid.name]))
    if len(usual) > 1:
        small, large = usual[0], usual[-1]
        names = f"{small.name} and {large.name}"
        rows += quality_matters_more(values[small.name], values[large.name], names)
    for grid in grids:
        same = [one for one in usual if one.scale == grid.scale]
        if grid.loss == "siglip" and same:
            rows += same_order(values[same[0].name], values[grid.name], grid.name)
    return rows


def write_tables(
    world: World,
    grids: Sequence[Grid],
    measures: Measures,
    rows: Sequence[Judged],
    folder: Path,
) -> None:
    """Write the tables of the grids into a folder.

    claims.csv; cells.csv, a row per run and metric; probes.csv, a row per probe; and texts.csv, a
    row per source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "claims", [asdict(row) for row in rows])
    cells = [
        {"grid": grid.name, "noise": grid.noise, "scale": grid.scale.name, "loss": grid.loss} | row
        for grid in grids
        for row in _rows(world, grid)
    ]
    _write(folder, "cells", cells)
    _write(folder, "probes", [row for grid in grids for row in _probes(world, grid)])
    texts = []
    for name, found in measures.items():
        cider = _cider(found)
        for source, about in found["population"]["sources"].items():
            kept = {name: about.get(name) for name in ("texts", "unique_texts", "unique_trigrams")}
            score = (about["noise"] or {}).get("mean")
            texts.append({"grid": name, "source": source} | kept | {"mean_score": score})
            texts[-1]["cider"] = cider.get(source)
    _write(folder, "texts", texts)


def read_cells(world: World, grid: Grid) -> Found:
    """Return the values over seeds of each recipe and metric, from a grid's results."""
    found: Found = {}
    for row in _rows(world, grid):
        found.setdefault((row["recipe"], (row["evalset"], row["metric"])), []).append(row["value"])
    return found


def _rows(world: World, grid: Grid) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(
        grid.folder(world) / "results/cells.parquet"
    ).to_pylist()
    return rows


def _probes(world: World, grid: Grid) -> list[dict[str, Any]]:
    """Return the accuracy of each probe; a run has the same recipe and seed."""
    return [
        {"grid": grid.name, "recipe": row["subset"], "seed": row["seed"]}
        | {"accuracy": row["world-classes/acc1"]}
        for row in _opened(world, grid).results().to_pylist()
        if row["of"] == "probe"
    ]


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write_csv(pa.Table.from_pylist(rows), folder / f"{name}.csv")


def _opened(world: World, grid: Grid) -> capmix.Workspace:
    return capmix.open(pool_folder(world, grid.scale, grid.noise), work=grid.folder(world))


def measured(world: World, grids: Sequence[Grid]) -> Measures:
    """Return the measures of each grid's texts, which its pipeline has computed."""
    return {grid.name: _opened(world, grid).measure(**measuring(world, grid)) for grid in grids}


def _trigrams(measures: dict[str, Any]) -> tuple[int, int]:
    sources = measures["population"]["sources"]
    return sources["coca"]["unique_trigrams"], sources["raw"]["unique_trigrams"]


def _cider(measures: dict[str, Any]) -> dict[str, float]:
    if measures["references"] is None:
        return {}
    found = measures["references"]["sources"]
    return {name: found[name]["CIDEr"] for name in CAPTIONERS if name in found}


def _covered(world: World, grid: Grid, subset: str) -> float:
    return _opened(world, grid).subset(subset).topics().effective
