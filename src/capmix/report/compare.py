"""Compare recipes over seeds: means, standard deviations and bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np

from capmix.probe.evaluate import ProbeResult
from capmix.report.seeds import Seed, error_of_differences, error_of_means

T = TypeVar("T")
RESAMPLES = 1000
CONTROLS = ("control", "oracle")


@dataclass(frozen=True)
class MeanEstimate:
    """Mean and standard deviation over seeds, and a 95% interval, in percent."""

    mean: float
    deviation: float
    low: float
    high: float

    def as_change(self, where: str = "") -> str:
        """Return a difference as text, with a verdict by whether its interval includes 0."""
        word = (
            "better" if self.low > 0 else "worse" if self.high < 0 else "no measurable difference"
        )
        return f"{self.mean:+.1f} points [{self.low:+.1f}, {self.high:+.1f}]{where}, {word}"


@dataclass(frozen=True)
class RecipeResult:
    """One recipe's row of the table; all numbers are in percent.

    `metrics` maps set/metric to (mean, deviation). `resamples` are the bootstrap averages behind
    the intervals, over the same items for all recipes; `by_seed` are the averages of the probes.
    """

    name: str
    seeds: int
    metrics: dict[str, tuple[float, float]]
    average: MeanEstimate
    against_baseline: MeanEstimate | None
    resamples: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    by_seed: Mapping[Seed, float] = field(default_factory=dict)


def compare(results: dict[str, list[ProbeResult]], baseline: str) -> list[RecipeResult]:
    """Return one row per recipe, in the given order, with its difference from `baseline`.

    The average is the mean over evaluation sets of each set's mean: acc1 for classification, the
    mean of recall@5 in both directions for retrieval. Intervals: percentile bootstrap (1,000
    resamples) over seeds and evaluation items jointly; a difference uses the same items for both
    recipes. A bootstrap over few seeds underestimates their variance, so an interval is never
    narrower than Student's t over seeds, whose error is pooled over the recipes with two seeds or
    more. The interval of an average is cut at 0 and 100.
    """
    samples = {name: _bootstrap(runs) for name, runs in results.items()}
    averages = {name: _by_seed(runs) for name, runs in results.items()}
    of_means = error_of_means({name: one.values() for name, one in pooled(averages).items()})
    of_differences = error_of_differences(pooled(averages))
    rows = []
    for name, runs in results.items():
        per_seed = np.array(list(averages[name].values()))
        difference = None
        if baseline in results and name != baseline:
            reference = np.array(list(averages[baseline].values()))
            half = (
                of_differences.half(averages[name], averages[baseline]) if of_differences else 0.0
            )
            mean = float(per_seed.mean() - reference.mean())
            difference = MeanEstimate(
                mean,
                float(np.hypot(_deviation(per_seed), _deviation(reference))),
                *_interval(samples[name] - samples[baseline], mean, half),
            )
        mean = float(per_seed.mean())
        half = of_means.half(1 / len(runs)) if of_means else 0.0
        low, high = _interval(samples[name], mean, half)
        average = MeanEstimate(mean, _deviation(per_seed), max(low, 0.0), min(high, 100.0))
        rows.append(
            RecipeResult(
                name, len(runs), _metrics(runs), average, difference, samples[name], averages[name]
            )
        )
    return rows


def verdict(rows: Sequence[RecipeResult], order: Sequence[str]) -> list[str]:
    """Return sentences: which recipes differ from the baseline, and whether `order` holds."""
    changes = ((row.name, row.against_baseline) for row in rows)
    lines = [f"{name}: {change.as_change()}" for name, change in changes if change is not None]
    return lines + order_found(rows, order)


def order_found(rows: Sequence[RecipeResult], order: Sequence[str]) -> list[str]:
    """Return a sentence on whether the means rise in `order`; none if a recipe has no results."""
    by_name = {row.name: row for row in rows}
    known = [by_name[name] for name in order if name in by_name]
    if not order or len(known) < len(order):
        return []
    means = [row.average.mean for row in known]
    rises = all(a < b for a, b in pairwise(means))
    verb = "holds" if rises else "does not hold"
    return [f"The expected order ({' < '.join(order)}) {verb} for these means."]


def _average(hits: dict[str, np.ndarray]) -> float:
    sets: dict[str, list[float]] = {}
    for name, values in hits.items():
        sets.setdefault(name.split("/")[0], []).append(float(values.mean()))
    return float(np.mean([np.mean(values) for values in sets.values()]))


def _by_seed(runs: Sequence[ProbeResult]) -> dict[Seed, float]:
    """Return averages in percent by the last part of a result's name.

    If several results have the same last part, the keys are their indices.
    """
    names: list[Seed] = [run.part.rpartition("/")[2] for run in runs]
    if len(set(names)) < len(names):
        names = list(range(len(names)))
    averages = [100 * _average(run.hits) for run in runs]
    return dict(zip(names, averages, strict=True))


def _bootstrap(runs: list[ProbeResult]) -> np.ndarray:
    """Return resampled averages in percent (1000,). The same items are drawn for every recipe.

    Metrics of one set share the draw if they have the same items. The two recalls of a retrieval
    set with several texts per image do not: one counts images, the other texts.
    """
    items = np.random.default_rng(0)
    seeds = np.random.default_rng([1, len(runs)])
    stacked = {name: np.stack([run.hits[name] for run in runs]) for name in runs[0].hits}
    items_of = {name: (name.split("/")[0], len(values[0])) for name, values in stacked.items()}
    averages = np.empty(RESAMPLES)
    for resample in range(RESAMPLES):
        rows = {
            one: items.integers(one[1], size=one[1]) for one in dict.fromkeys(items_of.values())
        }
        chosen = seeds.integers(len(runs), size=len(runs))
        averages[resample] = _average(
            {name: values[chosen][:, rows[items_of[name]]] for name, values in stacked.items()}
        )
    return 100 * averages


def pooled(values: Mapping[str, T]) -> Mapping[str, T]:
    """Return the recipes whose errors are pooled.

    Controls may vary less than others, so they are included only if there are not two other
    recipes.
    """
    others = {name: value for name, value in values.items() if not is_control_name(name)}
    return others if len(others) > 1 else values


def is_control_name(name: str) -> bool:
    """Return whether a recipe is named as a control or an oracle."""
    return name.startswith(CONTROLS)


def _interval(samples: np.ndarray, mean: float, half: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return min(float(low), mean - half), max(float(high), mean + half)


def _metrics(runs: list[ProbeResult]) -> dict[str, tuple[float, float]]:
    found = {}
    for name, metrics in runs[0].metrics.items():
        for metric in metrics:
            values = 100 * np.array([run.metrics[name][metric] for run in runs])
            found[f"{name}/{metric}"] = float(values.mean()), _deviation(values)
    return found


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
