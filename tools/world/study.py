"""Judge all claims from the grids of a world that were run, and write them as tables."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

import capmix
from world.claims import (
    AT_EQUAL_SIZE,
    CLAIMS,
    CONTROLS,
    EXPLORATORY,
    FILTERED,
    MATCHED,
    OF_SCALE,
    Claim,
    Judged,
    Metric,
    benchmark_misleads,
    best_fractions,
    covers_more,
    curves_cross,
    diversity_falls,
    judged,
    pays_more,
    same_order,
)
from world.drawings import object_classes
from world.gates import named_share, truth
from world.grid import MEASURED, PERCENTAGES, Grid, measuring, pool_folder
from world.models import CAPTIONERS, World
from world.scenes import HEAD, RARE, by_frequency

Found = dict[tuple[str, Metric], list[float]]
Measures = dict[str, dict[str, Any]]  # by name of a grid


def judge(world: World, grids: Sequence[Grid], measures: Measures) -> list[Judged]:
    """Return the verdicts of all claims, from the results of the grids, smallest scale first.

    `measures` are those of `measured`.
    """
    values = {grid.name: read_cells(world, grid) for grid in grids}
    usual = [grid for grid in grids if grid.noise == "usual" and grid.loss == "clip"]
    rows = [
        row
        for grid in grids
        if grid.loss == "clip"
        for row in judged(values[grid.name], grid.name, _claims(values[grid.name]))
    ]
    names, controls = {grid.name for grid in usual}, {claim.name for claim in CONTROLS}
    crossing = [row for row in rows if row.grid in names and row.claim not in controls]
    rows += _of_scales(values, usual, crossing, measures)
    for grid in usual:
        rows += best_fractions(values[grid.name], grid.name, PERCENTAGES)
        if _is_studied(values[grid.name]):
            mixed, filtered = (_covered(world, grid, name) for name in (MATCHED, FILTERED))
            rows += covers_more(mixed, filtered, grid.name)
        if grid.captioners == CAPTIONERS:
            for benchmark, scores_of in (("CIDEr", _cider), ("CLIPScore", _clipscore)):
                scores = scores_of(measures[grid.name])
                rows += benchmark_misleads(values[grid.name], grid.name, benchmark, scores)
    for grid in grids:
        same = [one for one in usual if one.scale == grid.scale]
        if grid.loss == "siglip" and same:
            rows += same_order(values[same[0].name], values[grid.name], grid.name)
    return rows


def _is_studied(values: Found) -> bool:
    return any(recipe == MATCHED for recipe, _ in values)


def _claims(values: Found) -> Sequence[Claim]:
    return (*CLAIMS, *CONTROLS, *(AT_EQUAL_SIZE if _is_studied(values) else ()), *EXPLORATORY)


def _of_scales(
    values: dict[str, Found], usual: Sequence[Grid], rows: Sequence[Judged], measures: Measures
) -> list[Judged]:
    """Judge what is compared between pools; `rows` are the comparisons whose curves can cross."""
    found = diversity_falls({grid.name: _trigrams(measures[grid.name]) for grid in usual})
    if len(usual) > 1:
        found += curves_cross(rows, f"{usual[0].name} to {usual[-1].name}")
        found += pays_more({grid.name: values[grid.name] for grid in usual}, OF_SCALE)
    return found


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
    texts = [row for grid in grids for row in _texts(world, grid, measures[grid.name])]
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


def _texts(world: World, grid: Grid, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per source: what was measured of its texts, and how many name their objects."""
    cider, named = _cider(found), _named(world, grid)
    rows = []
    for source, about in found["population"]["sources"].items():
        counts = {name: about.get(name) for name in ("texts", "unique_texts", "unique_trigrams")}
        score = (about["noise"] or {}).get("mean")
        row = {"grid": grid.name, "source": source} | counts | {"mean_score": score}
        rows.append(row | {"cider": cider.get(source)} | named[source])
    return rows


def _named(world: World, grid: Grid) -> dict[str, dict[str, float]]:
    """Return for each source the shares of the first texts that name an object of their image.

    `named` is by name or kind, `named_common` and `named_rare` by name only, among the images with
    an object of those classes.
    """
    sources = measuring(world, grid)["sources"]
    about = dict(islice(truth(pool_folder(world, grid.scale, grid.noise)), MEASURED))
    rows = _opened(world, grid).table(sources=sources, limit=MEASURED).to_pylist()
    objects = [about[row["uid"]]["objects"] for row in rows]
    order, classes = by_frequency(), object_classes()
    groups = {"common": order[:HEAD], "rare": order[-RARE:]}
    found = {}
    for source in sources:
        texts = [row[f"{source}_text"] or "" for row in rows]
        found[source] = {"named": named_share(texts, objects)}
        for group, numbers in groups.items():
            names = {classes[number].name for number in numbers}
            wanted = [[one for one in some if one in names] for some in objects]
            kept = [(text, some) for text, some in zip(texts, wanted, strict=True) if some]
            found[source][f"named_{group}"] = named_share(
                [text for text, _ in kept], [some for _, some in kept], by_kind=False
            )
    return found


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    write_csv(pa.Table.from_pylist(rows), folder / f"{name}.csv")


def _opened(world: World, grid: Grid) -> capmix.Workspace:
    return capmix.open(pool_folder(world, grid.scale, grid.noise), work=grid.folder(world))


def measured(world: World, grids: Sequence[Grid]) -> Measures:
    """Return the measures of each grid's texts, which its pipeline has computed."""
    return {grid.name: _opened(world, grid).measure(**measuring(world, grid)) for grid in grids}


def _trigrams(measures: dict[str, Any]) -> dict[str, int]:
    sources = measures["population"]["sources"]
    return {name: about["unique_trigrams"] for name, about in sources.items()}


def _cider(measures: dict[str, Any]) -> dict[str, float]:
    if measures["references"] is None:
        return {}
    found = measures["references"]["sources"]
    return {name: found[name]["CIDEr"] for name in CAPTIONERS if name in found}


def _clipscore(measures: dict[str, Any]) -> dict[str, float]:
    found = measures["population"]["sources"]
    return {name: found[name]["noise"]["mean"] for name in CAPTIONERS if name in found}


def _covered(world: World, grid: Grid, subset: str) -> float:
    return _opened(world, grid).subset(subset).topics().effective
