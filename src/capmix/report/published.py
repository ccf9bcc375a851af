"""Published baselines of DataComp by training scale."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from capmix.storage.layout import RUNS
from capmix.storage.store import Store
from capmix.training.scales import SCALES

SOURCE = "DataComp, Gadre et al. 2023, arXiv 2304.14108"
# Columns of published.csv, and the names of the same means in tables of results.
GROUPS = {
    "imagenet": "ImageNet",
    "imagenet_shifts": "ImageNet dist. shifts",
    "vtab": "VTAB",
    "retrieval": "Retrieval",
    "average38": "Average",
}


@dataclass(frozen=True)
class PublishedRow:
    """One baseline.

    `groups` are the confirmed means over groups of tasks in percent; `checkpoint` is the released
    model against whose results they were checked.
    """

    scale: str
    name: str
    size: str
    groups: dict[str, float]
    checkpoint: str


def published(scale: str | None) -> list[PublishedRow]:
    """Return the baselines of a DataComp scale; an empty list for any other scale."""
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
    """Return the scale at which the runs of all these recipes were trained.

    None if the scales differ, if a run.json cannot be read, or if a setting that determines the
    compute (model, batch size, samples seen) differs from the scale's.
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
