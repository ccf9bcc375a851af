"""Results of training on each subset, from trained runs or probes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from capmix.evaluation.classes import group_accuracy, of_group
from capmix.evaluation.results import MAIN, MEAN
from capmix.report.compare import RecipeResult
from capmix.report.published import GROUPS
from capmix.report.wording import listed
from capmix.storage.layout import RESULTS
from capmix.storage.store import Store

SUMMARY, CELLS = f"{RESULTS}/summary.parquet", f"{RESULTS}/cells.parquet"
IMAGENET, AVERAGE, RETRIEVAL = "ImageNet", "Average", "Retrieval"


@dataclass(frozen=True)
class RecipeOutcome:
    """The results of one subset, in percent.

    `average` is over all evaluation sets, `classes` is ImageNet accuracy or, without ImageNet, the
    mean over classification sets, `retrieval` the mean over retrieval sets; None if there is no
    such set. `low` and `high` are a 95% interval of the average (probes), or one standard
    deviation to each side (runs). `groups` are DataComp's means over groups of tasks, only of
    complete groups, and accuracies of groups of classes; `average_of` names the mean that
    `average` is.
    """

    subset: str
    of: Literal["runs", "probes"]
    seeds: int
    average: float
    low: float
    high: float
    classes: float | None
    retrieval: float | None
    groups: Mapping[str, float] = field(default_factory=dict)
    average_of: str = ""


def of_probes(rows: Sequence[RecipeResult]) -> list[RecipeOutcome]:
    """Return the outcomes of probes.

    `classes` is the mean accuracy and `retrieval` the mean recall@5 in both directions, as in the
    average.
    """
    found = []
    for row in rows:
        accuracy = [mean for name, (mean, _) in row.metrics.items() if name.endswith("acc1")]
        recall = [mean for name, (mean, _) in row.metrics.items() if name.endswith("recall@5")]
        average = row.average
        found.append(
            RecipeOutcome(
                row.name, "probes", row.seeds, average.mean, average.low, average.high,
                _mean(accuracy), _mean(recall),
            )
        )  # fmt: skip
    return found


def read_summary(store: Store, pool: str) -> list[dict[str, Any]]:
    """Return this pool's rows of results/summary.parquet (see pipeline/grid.py)."""
    return _of_pool(store, SUMMARY, pool)


def read_cells(store: Store, pool: str) -> list[dict[str, Any]]:
    """Return this pool's rows of results/cells.parquet, which has a row per seed."""
    return _of_pool(store, CELLS, pool)


def _of_pool(store: Store, name: str, pool: str) -> list[dict[str, Any]]:
    if not store.exists(name):
        return []
    rows: list[dict[str, Any]] = store.read_table(name).to_pylist()
    pools = {row["pool"] for row in rows}
    return [row for row in rows if len(pools) == 1 or row["pool"] == pool]


def comparable(rows: Sequence[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Return the rows of the largest group of recipes evaluated on the same tasks.

    Of groups of the same size the first is kept. A note about each other group is appended to
    `notes`.
    """
    tasks: dict[str, set[str]] = {}
    for row in rows:
        known = tasks.setdefault(str(row["recipe"]), set())
        if row["metric"] == MAIN:
            known.add(str(row["evalset"]))
    groups: dict[frozenset[str], list[str]] = {}
    for recipe, found in tasks.items():
        groups.setdefault(frozenset(found), []).append(recipe)
    kept = max(groups, key=lambda one: len(groups[one]), default=frozenset[str]())
    for sets, recipes in groups.items():
        changes = [("without", kept - sets), ("with", sets - kept)]
        differing = [f"{word} {listed(sorted(names))}" for word, names in changes if names]
        if differing:
            notes.append(
                f"The runs of {listed(recipes)} are left out: unlike the others, they were "
                f"evaluated {' and '.join(differing)}. To compare them, evaluate all on the same "
                "tasks."
            )
    return [row for row in rows if row["recipe"] in groups.get(kept, [])]


def of_runs(rows: Sequence[Mapping[str, Any]]) -> list[RecipeOutcome]:
    """Return the outcomes of trained runs from a grid's table of results."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(str(row["recipe"]), []).append(row)
    found = []
    averaged = average_name(rows)
    for recipe, of_recipe in by_recipe.items():
        main = {row["evalset"]: row for row in of_recipe if row["metric"] == MAIN}
        average = main.get(averaged)
        if average is None:
            continue
        kinds: dict[str, set[str]] = {}
        for row in of_recipe:
            kinds.setdefault(row["evalset"], set()).add(row["metric"])
        classes = [100 * main[s]["mean"] for s in main if "acc1" in kinds[s]]
        pairs = [100 * main[s]["mean"] for s in main if "image_retrieval_recall@1" in kinds[s]]
        mean, spread = 100 * average["mean"], 100 * (average["deviation"] or 0.0)
        imagenet, retrieval = main.get("imagenet1k") or main.get(IMAGENET), main.get(RETRIEVAL)
        found.append(
            RecipeOutcome(
                recipe, "runs", average["seeds"], mean, mean - spread, mean + spread,
                100 * imagenet["mean"] if imagenet else _mean(classes),
                100 * retrieval["mean"] if retrieval else _mean(pairs),
                {name: 100 * main[name]["mean"] for name in GROUPS.values() if name in main}
                | _of_classes(of_recipe),
                averaged,
            )
        )  # fmt: skip
    return found


def _of_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the accuracy in percent of each group of classes of each evaluation set."""
    return {
        of_group(group, row["evalset"]): 100 * row["mean"]
        for row in rows
        for group in group_accuracy([row["metric"]])
    }


def average_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the mean that all recipes have.

    It is over DataComp's 38 tasks if all recipes were evaluated on them, otherwise over all sets.
    """
    recipes = {row["recipe"] for row in rows}
    whole = {row["recipe"] for row in rows if (row["evalset"], row["metric"]) == (AVERAGE, MAIN)}
    return AVERAGE if recipes == whole else MEAN


def averages_by_seed(
    cells: Sequence[Mapping[str, Any]], averaged: str
) -> dict[str, dict[int, float]]:
    """Return the average in percent of each recipe's runs, by seed."""
    found: dict[str, dict[int, float]] = {}
    for row in cells:
        if (row["evalset"], row["metric"]) == (averaged, MAIN):
            found.setdefault(str(row["recipe"]), {})[int(row["seed"])] = 100 * float(row["value"])
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
