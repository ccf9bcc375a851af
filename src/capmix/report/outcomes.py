"""How well what was trained on each subset does, from trained runs or from probes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from capmix.evaluation.results import MAIN, MEAN
from capmix.report.compare import RecipeResult
from capmix.storage.layout import RESULTS
from capmix.storage.store import Store

SUMMARY = f"{RESULTS}/summary.parquet"
IMAGENET, AVERAGE, RETRIEVAL = "ImageNet", "Average", "Retrieval"


@dataclass(frozen=True)
class RecipeOutcome:
    """Of one subset, in percent. `average` is over all sets, `classes` on ImageNet or, without it,
    over the sets with classes, `retrieval` over the others; None where there is no such set.
    `low` and `high` are a 95 % interval of the average, or a standard deviation to each side."""

    subset: str
    of: Literal["runs", "probes"]
    seeds: int
    average: float
    low: float
    high: float
    classes: float | None
    retrieval: float | None


def of_probes(rows: Sequence[RecipeResult]) -> list[RecipeOutcome]:
    """classes is the mean accuracy, retrieval the mean recall@5 both ways, as in their average."""
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
    """The rows of results/summary.parquet (see experiment.py) that are of this pool."""
    if not store.exists(SUMMARY):
        return []
    rows: list[dict[str, Any]] = store.read_table(SUMMARY).to_pylist()
    pools = {row["pool"] for row in rows}
    return [row for row in rows if len(pools) == 1 or row["pool"] == pool]


def of_runs(rows: Sequence[Mapping[str, Any]]) -> list[RecipeOutcome]:
    """The same from a grid's table of results."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(str(row["recipe"]), []).append(row)
    found = []
    for recipe, of_recipe in by_recipe.items():
        main = {row["evalset"]: row for row in of_recipe if row["metric"] == MAIN}
        average = main.get(AVERAGE) or main.get(MEAN)
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
            )
        )  # fmt: skip
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
