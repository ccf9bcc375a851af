"""Judge all claims from the grids of a world that were run, and write them as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

import capmix
from world.claims import (
    FILTERED,
    MIX,
    Judged,
    Metric,
    benchmark_misleads,
    best_fractions,
    covers_more,
    diversity_falls,
    judged,
    quality_matters_more,
    same_order,
)
from world.grid import FRACTION, OTHER_FRACTIONS, Grid, measuring, pool_folder
from world.models import CAPTIONERS, World

FRACTIONS = sorted(round(100 * one) for one in (FRACTION, *OTHER_FRACTIONS))
Found = dict[tuple[str, Metric], list[float]]


def judge(world: World, grids: Sequence[Grid]) -> list[Judged]:
    """Return the verdicts of all claims, from the results of the grids, smallest scale first."""
    values = {grid: read_cells(world, grid) for grid in grids}
    measures = {grid: _measured(world, grid) for grid in grids}
    rows: list[Judged] = []
    for grid in grids:
        if grid.loss == "clip":
            rows += judged(values[grid], grid.name)
    usual = [grid for grid in grids if grid.noise == "usual" and grid.loss == "clip"]
    rows += diversity_falls({grid.name: _trigrams(measures[grid]) for grid in usual})
    for grid in usual:
        rows += best_fractions(values[grid], grid.name, FRACTIONS)
        mixed, filtered = (_covered(world, grid, name) for name in (MIX, FILTERED))
        rows += covers_more(mixed, filtered, grid.name)
        if grid.captioners == CAPTIONERS:
            rows += benchmark_misleads(values[grid], grid.name, _cider(measures[grid]))
    if len(usual) > 1:
        small, large = usual[0], usual[-1]
        names = f"{small.name} and {large.name}"
        rows += quality_matters_more(values[small], values[large], names)
    for grid in grids:
        same = [one for one in usual if one.scale == grid.scale]
        if grid.loss == "siglip" and same:
            rows += same_order(values[same[0]], values[grid], grid.name)
    return rows


def write_tables(world: World, grids: Sequence[Grid], rows: Sequence[Judged]) -> None:
    """Write claims.csv, cells.csv (a row per run and metric) and texts.csv (a row per source)."""
    _write(world, "claims", [asdict(row) for row in rows])
    cells = [
        {"grid": grid.name, "noise": grid.noise, "scale": grid.scale.name, "loss": grid.loss} | row
        for grid in grids
        for row in _rows(world, grid)
    ]
    _write(world, "cells", cells)
    texts = []
    for grid in grids:
        found = _measured(world, grid)
        cider = _cider(found)
        for source, about in found["population"]["sources"].items():
            kept = {name: about.get(name) for name in ("texts", "unique_texts", "unique_trigrams")}
            score = (about.get("score") or {}).get("mean")
            texts.append({"grid": grid.name, "source": source} | kept | {"mean_score": score})
            texts[-1]["cider"] = cider.get(source)
    _write(world, "texts", texts)


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


def _write(world: World, name: str, rows: list[dict[str, Any]]) -> None:
    folder = world.folder / "results"
    folder.mkdir(exist_ok=True)
    write_csv(pa.Table.from_pylist(rows), folder / f"{name}.csv")


def _opened(world: World, grid: Grid) -> capmix.Workspace:
    return capmix.open(pool_folder(world, grid.scale, grid.noise), work=grid.folder(world))


def _measured(world: World, grid: Grid) -> dict[str, Any]:
    return _opened(world, grid).measure(**measuring(world, grid))


def _trigrams(measures: dict[str, Any]) -> tuple[int, int]:
    sources = measures["population"]["sources"]
    return sources["coca"]["unique_trigrams"], sources["raw"]["unique_trigrams"]


def _cider(measures: dict[str, Any]) -> dict[str, float]:
    return {
        source: found["CIDEr"]
        for source, found in measures["references"]["sources"].items()
        if source in CAPTIONERS
    }


def _covered(world: World, grid: Grid, subset: str) -> int:
    return _opened(world, grid).subset(subset).topics().covered()
