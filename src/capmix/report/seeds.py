"""Estimate the variance between training seeds; with few seeds, intervals are Student's t."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

LEVEL = 0.05


Seed = int | str


@dataclass(frozen=True)
class SeedError:
    """The variance over training seeds, in points squared, and its degrees of freedom."""

    variance: float
    freedom: int

    def half(self, share: float, comparisons: int = 1) -> float:
        """Return the half-width of a 95% interval.

        `share` scales the variance: 1/n for a mean of n seeds. With several `comparisons`, the
        interval is simultaneous (Bonferroni).
        """
        quantile = t_quantile(1 - LEVEL / 2 / comparisons, self.freedom)
        return quantile * math.sqrt(self.variance * share)


@dataclass(frozen=True)
class PairError:
    """The error of a difference between two recipes' means.

    `paired` excludes the effect of a seed on all recipes, which cancels out if both recipes have
    the same seeds; None if too few recipes share seeds. `apart` includes it.
    """

    paired: SeedError | None
    apart: SeedError

    def half(
        self, first: Collection[Seed], second: Collection[Seed], comparisons: int = 1
    ) -> float:
        """Return the half-width of a 95% interval for recipes with these seeds; see SeedError."""
        is_paired = self.paired is not None and set(first) == set(second)
        error = self.paired if self.paired is not None and is_paired else self.apart
        return error.half(1 / len(first) + 1 / len(second), comparisons)


def error_of_means(values: Mapping[str, Collection[float]]) -> SeedError | None:
    """Return the error of a recipe's mean over seeds, pooled over all recipes.

    `values` are averages by seed for each recipe; None if no recipe has two seeds.
    """
    known = [np.array(list(one)) for one in values.values() if len(one) > 1]
    if not known:
        return None
    freedom = sum(len(one) - 1 for one in known)
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in known)
    return SeedError(squares / freedom, freedom)


def error_of_differences(values: Mapping[str, Mapping[Seed, float]]) -> PairError | None:
    """Return the error of differences between recipes, from recipes with two seeds or more.

    An additive model of recipe and seed is fitted by least squares; its residuals are the error of
    paired means. Means over different seeds also differ by the effect of the seeds on all recipes;
    the degrees of freedom of the sum of both are Satterthwaite's, rounded down. None if no recipe
    has two seeds.
    """
    known = [one for one in values.values() if len(one) > 1]
    within = error_of_means({str(i): list(one.values()) for i, one in enumerate(known)})
    if within is None:
        return None
    squares, freedom = _residuals(known)
    of_seeds = max(within.variance * within.freedom - squares, 0.0)
    parts = [(of_seeds, within.freedom - freedom), (squares, freedom)]
    spread = sum(part**2 / count for part, count in parts if count)
    both = int((of_seeds + squares) ** 2 / spread + 1e-9) if spread else within.freedom
    paired = SeedError(squares / freedom, freedom) if freedom else None
    return PairError(paired, SeedError(within.variance, max(both, 1)))


def _residuals(recipes: Sequence[Mapping[Seed, float]]) -> tuple[float, int]:
    """Return the residual sum of squares of an additive model of recipe and seed.

    The second value is the degrees of freedom.
    """
    seeds = list({seed: None for one in recipes for seed in one})
    cells = [(i, seed, value) for i, one in enumerate(recipes) for seed, value in one.items()]
    design = np.zeros((len(cells), len(recipes) + len(seeds)))
    for row, (i, seed, _) in enumerate(cells):
        design[row, [i, len(recipes) + seeds.index(seed)]] = 1
    observed = np.array([value for _, _, value in cells])
    effects, _, rank, _ = np.linalg.lstsq(design, observed, rcond=None)
    freedom = len(cells) - int(rank)
    return float(((observed - design @ effects) ** 2).sum()) if freedom else 0.0, freedom


@cache
def t_quantile(share: float, freedom: int) -> float:
    """Return a quantile of Student's t with integer degrees of freedom; `share` is above 0.5."""
    low, high = 0.0, 1.0
    while _t_share(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < share else (low, middle)
    return high


def _t_share(t: float, freedom: int) -> float:
    """Evaluate the cumulative distribution function (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
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
