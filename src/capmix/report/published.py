"""Published results to compare with: DataComp's baselines, by training scale."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from capmix.storage.layout import RUNS
from capmix.storage.store import Store
from capmix.training.scales import SCALES

SOURCE = "DataComp, Gadre et al. 2023, arXiv 2304.14108"
# Columns of published.csv, and what the same means are called in tables of results.
GROUPS = {
    "imagenet": "ImageNet",
    "imagenet_shifts": "ImageNet dist. shifts",
    "vtab": "VTAB",
    "retrieval": "Retrieval",
    "average38": "Average",
}


@dataclass(frozen=True)
class PublishedRow:
    """One baseline. `groups` are means over groups of tasks in percent, those that are confirmed;
    `checkpoint` is the released model whose results they were checked against."""

    scale: str
    name: str
    size: str
    groups: dict[str, float]
    checkpoint: str


def published(scale: str | None) -> list[PublishedRow]:
    """The baselines of one of DataComp's scales; none for another scale."""
    text = (resources.files("capmix.report") / "published.csv").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [
        PublishedRow(row["scale"], row["filtering"], row["size"], _groups(row), row["checkpoint"])
        for row in csv.DictReader(lines)
        if row["scale"] == scale
    ]


def _groups(row: dict[str, str]) -> dict[str, float]:
    return {name: 100 * float(row[column]) for column, name in GROUPS.items() if row[column]}


def scale_of_runs(store: Store, recipes: Iterable[str]) -> str | None:
    """The scale that the runs of all these recipes were trained at.

    None where they differ, where a run.json cannot be read, or where a setting that fixes the
    compute (model, batch, samples seen) is not the scale's.
    """
    wanted = set(recipes)
    folders = [one for one in store.folders(RUNS) if one.rpartition("-seed")[0] in wanted]
    found = {_scale(store.read_json(f"{RUNS}/{folder}/run.json")) for folder in folders}
    return found.pop() if len(found) == 1 else None


def _scale(about: Any) -> str | None:
    scale = about.get("scale") if isinstance(about, dict) else None
    named = SCALES.get(str(scale.get("name"))) if isinstance(scale, dict) else None
    if named is None or not isinstance(scale, dict):
        return None
    same = all(scale.get(key) == getattr(named, key) for key in ("model", "batch_size", "samples"))
    return named.name if same else None
