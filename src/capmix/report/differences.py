"""Differences between each two recipes, and which of them are clear of zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capmix.report.compare import RecipeResult, pooled
from capmix.report.seeds import LEVEL, error_of_differences


@dataclass(frozen=True)
class Difference:
    """In points. `low` and `high` are a 95 % interval of this difference by itself, None where
    nothing says how much chance there is in it. `is_clear` holds at 5 % for all pairs together."""

    mean: float
    low: float | None
    high: float | None
    is_clear: bool


@dataclass(frozen=True)
class Differences:
    """Of all pairs of `names`, whose averages in percent are `means`; `about` says what the
    intervals are of."""

    names: Sequence[str]
    means: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    clear: np.ndarray
    about: str

    @property
    def tested(self) -> bool:
        return self.low is not None

    def mean(self, name: str) -> float:
        return float(self.means[self.names.index(name)])

    def of(self, first: str, second: str) -> Difference:
        """`first` minus `second`. Raises ValueError for a name that is not there."""
        i, j = self.names.index(first), self.names.index(second)
        low = None if self.low is None else float(self.low[i, j])
        high = None if self.high is None else float(self.high[i, j])
        mean = float(self.means[i] - self.means[j])
        return Difference(mean, low, high, bool(self.clear[i, j]))


def of_probes(rows: Sequence[RecipeResult]) -> Differences:
    """From bootstrap resamples of seeds and items: percentile intervals, and for all pairs together
    the 95 % quantile of the greatest studentized deviation (max-T, Westfall and Young 1993).

    A bootstrap over few seeds finds too little chance in them: an interval is never narrower than,
    and a difference never clear without, Student's t over seeds (see of_runs).
    """
    samples = np.stack([row.resamples for row in rows])
    means = np.array([row.average.mean for row in rows])
    difference = means[:, None] - means[None]
    error, low, high = (np.zeros(difference.shape) for _ in range(3))
    greatest = np.zeros(samples.shape[1])
    for i, one in enumerate(samples):
        pairs = one - samples
        error[i] = pairs.std(axis=1, ddof=1)
        low[i], high[i] = np.quantile(pairs, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
        scale = np.where(error[i] > 0, error[i], 1.0)
        deviation = np.abs(pairs - difference[i][:, None]) / scale[:, None]
        greatest = np.maximum(greatest, deviation.max(axis=0))
    critical = float(np.quantile(greatest, 1 - LEVEL))
    clear = np.abs(difference) > critical * error
    names = [row.name for row in rows]
    of_seeds = error_of_differences(pooled({row.name: row.by_seed for row in rows}))
    if of_seeds is None:
        return Differences(
            names, means, low, high, clear, "95 % bootstrap intervals over test items, not seeds"
        )
    half = of_seeds.half()
    low, high = np.minimum(low, difference - half), np.maximum(high, difference + half)
    clear &= np.abs(difference) > of_seeds.half(_pairs(names))
    about = "95 % bootstrap intervals over training seeds and test items"
    return Differences(names, means, low, high, clear, about)


def of_runs(averages: Mapping[str, Mapping[int, float]]) -> Differences:
    """From averages in percent by recipe and seed: t intervals of differences paired by seed.

    The error is pooled over the recipes that are no controls, over the seeds that all have; for all
    pairs together it is Bonferroni's. With one seed in common nothing is tested.
    """
    names = list(averages)
    seeds = sorted(set.intersection(*(set(averages[name]) for name in names)))
    values = {name: [averages[name][seed] for seed in seeds] for name in names}
    of_seeds = error_of_differences(pooled(values))
    if of_seeds is None:
        values = {name: list(averages[name].values()) for name in names}
    means = np.array([float(np.mean(values[name])) for name in names])
    difference = means[:, None] - means[None]
    if of_seeds is None:
        clear = np.zeros(difference.shape, bool)
        return Differences(names, means, None, None, clear, "no two seeds in common")
    half = of_seeds.half()
    clear = np.abs(difference) > of_seeds.half(_pairs(names))
    about = f"95 % t intervals over {len(seeds)} training seeds, paired by seed"
    return Differences(names, means, difference - half, difference + half, clear, about)


def _pairs(names: Sequence[str]) -> int:
    return len(names) * (len(names) - 1) // 2 or 1
