"""The tables of docs/world.md are the means of the published runs."""

import csv
import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest
from scipy.stats import kendalltau

DOCS = Path(__file__).parents[2] / "docs"
METRICS = {
    "accuracy": ("world-classes", "acc1"),
    "common": ("world-classes", "acc1_group:common"),
    "rare": ("world-classes", "acc1_group:rare"),
    "retrieval": ("world-pairs", "main_metric"),
    "retrieval, web texts": ("world-pairs-web", "main_metric"),
}


def published() -> dict[tuple[str, str, str], float]:
    """Return the means over seeds in %, by grid, recipe and column; `samples` as they are."""
    values = defaultdict(list)
    names = {metric: name for name, metric in METRICS.items()}
    with (DOCS / "world/cells.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            name = names.get((row["evalset"], row["metric"]))
            if name:
                values[row["grid"], row["recipe"], name].append(100 * float(row["value"]))
                values[row["grid"], row["recipe"], "samples"].append(float(row["samples"]))
    return {key: mean(some) for key, some in values.items()}


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """Return the grids and the rows of each table below a comment `grids: ...`, header first."""
    found = []
    text = (DOCS / "world.md").read_text()
    for grids, table in re.findall(r"<!-- grids: (.*) -->\n\n((?:\|.*\n)+)", text):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        found.append((grids.split(), [rows[0], *rows[2:]]))
    return found


def test_tables_show_the_means_of_the_runs() -> None:
    means, checked = published(), 0
    for grids, (header, *rows) in tables():
        columns = header[header.index("recipe") + 1 :]
        for row in rows:
            recipe = row[header.index("recipe")].strip("`")
            cells = row[header.index("recipe") + 1 :]
            for place, (column, cell) in enumerate(zip(columns, cells, strict=True)):
                grid = grids[place * len(grids) // len(columns)]
                name = column.rpartition(": ")[2]
                if cell:
                    digits = 0 if name == "samples" else 1
                    assert float(cell.replace(",", "")) == pytest.approx(
                        means[grid, recipe, name], abs=0.5 * 10**-digits + 1e-9
                    ), (grid, recipe, column)
                    checked += 1
    assert checked > 150


def test_the_gates_are_those_of_the_published_world() -> None:
    gates = json.loads((DOCS / "world/gates.json").read_text())
    text = (DOCS / "world.md").read_text()
    named, shuffled = gates["captioner"]["named"], gates["captioner"]["shuffled"]
    assert f"{named:.0%}; permuted among the images {shuffled:.0%}" in text
    assert f"{gates['times_chance']:.0f} x" in text
    aucs = gates["scorer"]["auc"]
    assert f"specific texts {aucs['specific']:.2f}, partial ones {aucs['partial']:.2f}" in text


def test_probes_agree_with_runs_as_the_page_says() -> None:
    probes = defaultdict(list)
    with (DOCS / "world/probes.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            probes[row["grid"], row["recipe"]].append(float(row["accuracy"]))
    means = published()
    recipes = [recipe for grid, recipe in probes if grid == "usual-16k"]
    assert len(recipes) == 22
    ranked = [mean(probes["usual-16k", recipe]) for recipe in recipes]
    taus = [
        kendalltau(ranked, [means["usual-16k", recipe, name] for recipe in recipes]).statistic
        for name in ("accuracy", "retrieval")
    ]
    assert taus == [pytest.approx(0.26, abs=0.005), pytest.approx(0, abs=0.02)]
    for page in ("world.md", "evaluation.md"):
        text = " ".join((DOCS / page).read_text().split())
        assert "Kendall's tau of the probes' accuracy is 0.26 with" in text
        assert "and about 0 with their retrieval" in text
