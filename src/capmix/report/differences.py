"""Differences between each two recipes, and which of them are clear of zero."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from capmix.report.compare import RecipeResult

LEVEL = 0.05


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
    """From bootstrap resamples: percentile intervals, and for all pairs together the 95 % quantile
    of the greatest studentized deviation (max-T, Westfall and Young 1993)."""
    samples = np.stack([row.resamples for row in rows])
    means = np.array([row.average.mean for row in rows])
    pairs = samples[:, None] - samples[None]
    difference = means[:, None] - means[None]
    error = pairs.std(axis=2, ddof=1)
    spread = np.where(error > 0, error, 1.0)
    deviation = np.abs(pairs - difference[:, :, None]) / spread[:, :, None]
    critical = float(np.quantile(deviation.max(axis=(0, 1)), 1 - LEVEL))
    low, high = np.quantile(pairs, [LEVEL / 2, 1 - LEVEL / 2], axis=2)
    clear = np.abs(difference) > critical * error
    seeds = min(row.seeds for row in rows)
    over = "training seeds and test items" if seeds > 1 else "test items, not over training seeds"
    about = f"95 % bootstrap intervals over {over}"
    return Differences([row.name for row in rows], means, low, high, clear, about)


def of_runs(
    averages: Mapping[str, Mapping[int, float]], apart: Collection[str] = ()
) -> Differences:
    """From averages in percent by recipe and seed: t intervals of differences paired by seed.

    The error is pooled over the recipes that are not `apart` (an additive model of recipe and seed,
    over the seeds that all have); for all pairs together it is Bonferroni's. With one seed in
    common nothing is tested.
    """
    names = list(averages)
    means = np.array([float(np.mean(list(averages[name].values()))) for name in names])
    seeds = sorted(set.intersection(*(set(averages[name]) for name in names)))
    pooled = [name for name in names if name not in apart]
    freedom = (len(pooled) - 1) * (len(seeds) - 1)
    clear = np.zeros((len(names), len(names)), bool)
    if freedom < 1:
        return Differences(names, means, None, None, clear, "no intervals: one seed a recipe")
    values = np.array([[averages[name][seed] for seed in seeds] for name in pooled])
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    error = math.sqrt(2 * float((rest**2).sum()) / freedom / len(seeds))
    means = np.array([float(np.mean([averages[name][seed] for seed in seeds])) for name in names])
    difference = means[:, None] - means[None]
    half = t_quantile(1 - LEVEL / 2, freedom) * error
    count = len(names) * (len(names) - 1) // 2
    clear = np.abs(difference) > t_quantile(1 - LEVEL / 2 / count, freedom) * error
    low, high = difference - half, difference + half
    about = f"95 % t intervals over {len(seeds)} training seeds, paired by seed"
    return Differences(names, means, low, high, clear, about)


def t_quantile(share: float, freedom: int) -> float:
    """Of Student's t distribution with whole degrees of freedom; `share` above 0.5."""
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return high


def _t_share(t: float, freedom: int) -> float:
    """The distribution function (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = term if freedom > 1 else 0.0
    for k in range(1 + odd, freedom - 2, 2):
        term *= cosine * k / (k + 1)
        total += term
    inside = 2 / math.pi * (angle + total) if odd else total
    return 0.5 + inside / 2
