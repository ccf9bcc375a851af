"""Differences between all pairs of recipes, and which are significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capmix.report.compare import RecipeResult, pooled
from capmix.report.seeds import LEVEL, PairError, Seed, error_of_differences


@dataclass(frozen=True)
class Difference:
    """A difference in points.

    `low` and `high` are a 95% interval of this difference alone; None if its error is unknown.
    `is_clear`: significant at 5%, corrected for all pairs.
    """

    mean: float
    low: float | None
    high: float | None
    is_clear: bool


@dataclass(frozen=True)
class Differences:
    """The differences between all pairs of `names`, whose averages in percent are `means`.

    `about` describes the intervals.
    """

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
        """Return `first` minus `second`. Raises ValueError for an unknown name."""
        i, j = self.names.index(first), self.names.index(second)
        low = None if self.low is None else float(self.low[i, j])
        high = None if self.high is None else float(self.high[i, j])
        mean = float(self.means[i] - self.means[j])
        return Difference(mean, low, high, bool(self.clear[i, j]))


def of_probes(rows: Sequence[RecipeResult]) -> Differences:
    """Return differences between probes, from bootstrap resamples of seeds and items.

    Intervals are percentile intervals. Significance for all pairs uses the 95% quantile of the
    greatest studentized deviation (max-T, Westfall and Young 1993). A bootstrap over few seeds
    underestimates their variance, so an interval is never narrower than Student's t over seeds, and
    a difference is significant only if it is also by that test (see of_runs).
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
    by_seed = {row.name: row.by_seed for row in rows}
    of_seeds = error_of_differences(pooled(by_seed))
    if of_seeds is None:
        return Differences(
            names, means, low, high, clear, "95% bootstrap intervals over test items, not seeds"
        )
    half, strict = _halves(of_seeds, by_seed)
    low, high = np.minimum(low, difference - half), np.maximum(high, difference + half)
    clear &= np.abs(difference) > strict
    about = "95% bootstrap intervals over training seeds and test items" + _single(by_seed)
    return Differences(names, means, low, high, clear, about)


def of_runs(averages: Mapping[str, Mapping[int, float]]) -> Differences:
    """Return differences between runs, from averages in percent by recipe and seed.

    Intervals are t intervals of differences paired by seed. The error is pooled over the recipes
    with two seeds or more, without controls. If these recipes have two or more seeds in common,
    only these seeds are compared. Significance for all pairs is Bonferroni-corrected. Without a
    recipe that has two seeds, nothing is tested.
    """
    names = list(averages)
    common = _common(averages)
    values: dict[str, Mapping[Seed, float]] = {
        name: {seed: value for seed, value in one.items() if len(one) < 2 or seed in common}
        for name, one in averages.items()
    }
    of_seeds = error_of_differences(pooled(values))
    means = np.array([float(np.mean(list(values[name].values()))) for name in names])
    difference = means[:, None] - means[None]
    if of_seeds is None:
        clear = np.zeros(difference.shape, bool)
        return Differences(names, means, None, None, clear, "no recipe has two seeds")
    half, strict = _halves(of_seeds, values)
    clear = np.abs(difference) > strict
    several = {frozenset(one) for one in values.values() if len(one) > 1}
    about = "95% t intervals over training seeds, paired for recipes with the same seeds"
    if len(several) == 1:
        about = f"95% t intervals over {len(several.pop())} training seeds, paired by seed"
    about += _single(values)
    return Differences(names, means, difference - half, difference + half, clear, about)


def _common(averages: Mapping[str, Mapping[int, float]]) -> set[int]:
    """Return the seeds that all recipes with several seeds share; if fewer than two, all seeds."""
    several = [set(one) for one in averages.values() if len(one) > 1]
    shared = set.intersection(*several) if several else set()
    return shared if len(shared) > 1 else set[int]().union(*several)


def _halves(
    error: PairError, by_seed: Mapping[str, Mapping[Seed, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the half-widths of the intervals of all pairs: individual and simultaneous."""
    of_all = _pairs(list(by_seed))
    half, strict = (
        np.array([[error.half(a, b, n) for b in by_seed.values()] for a in by_seed.values()])
        for n in (1, of_all)
    )
    return half, strict


def _single(by_seed: Mapping[str, Mapping[Seed, float]]) -> str:
    """Return a remark for the case that a recipe has only one seed."""
    if all(len(one) > 1 for one in by_seed.values()):
        return ""
    return " (recipes with one seed use the seed error of the others)"


def _pairs(names: Sequence[str]) -> int:
    return len(names) * (len(names) - 1) // 2 or 1
