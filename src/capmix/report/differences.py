"""Differences between each two recipes, and which of them are clear of zero."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capmix.report.compare import RecipeResult, pooled
from capmix.report.seeds import LEVEL, PairError, Seed, error_of_differences


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
    by_seed = {row.name: row.by_seed for row in rows}
    of_seeds = error_of_differences(pooled(by_seed))
    if of_seeds is None:
        return Differences(
            names, means, low, high, clear, "95 % bootstrap intervals over test items, not seeds"
        )
    half, strict = _halves(of_seeds, by_seed)
    low, high = np.minimum(low, difference - half), np.maximum(high, difference + half)
    clear &= np.abs(difference) > strict
    about = "95 % bootstrap intervals over training seeds and test items" + _single(by_seed)
    return Differences(names, means, low, high, clear, about)


def of_runs(averages: Mapping[str, Mapping[int, float]]) -> Differences:
    """From averages in percent by recipe and seed: t intervals of differences paired by seed.

    The error is pooled over the recipes with two seeds or more that are no controls; of these
    recipes the seeds that all have are compared, if two are. For all pairs together it is
    Bonferroni's. Where no recipe has two seeds nothing is tested.
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
    about = "95 % t intervals over training seeds, paired where two recipes have the same"
    if len(several) == 1:
        about = f"95 % t intervals over {len(several.pop())} training seeds, paired by seed"
    about += _single(values)
    return Differences(names, means, difference - half, difference + half, clear, about)


def _common(averages: Mapping[str, Mapping[int, float]]) -> set[int]:
    """The seeds that all recipes with several have, or every seed where these are not two."""
    several = [set(one) for one in averages.values() if len(one) > 1]
    shared = set.intersection(*several) if several else set()
    return shared if len(shared) > 1 else set[int]().union(*several)


def _halves(
    error: PairError, by_seed: Mapping[str, Mapping[Seed, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Halves of the intervals of all pairs: of each by itself, and of all together."""
    of_all = _pairs(list(by_seed))
    half, strict = (
        np.array([[error.half(a, b, n) for b in by_seed.values()] for a in by_seed.values()])
        for n in (1, of_all)
    )
    return half, strict


def _single(by_seed: Mapping[str, Mapping[Seed, float]]) -> str:
    """What is to be said where a recipe has one seed alone."""
    if all(len(one) > 1 for one in by_seed.values()):
        return ""
    return " (a recipe with one seed has the seed error of the others)"


def _pairs(names: Sequence[str]) -> int:
    return len(names) * (len(names) - 1) // 2 or 1
