"""How much chance there is in training seeds, of which there are few: Student's t."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class SeedError:
    """A standard error in points, and its degrees of freedom."""

    error: float
    freedom: int

    def half(self, comparisons: int = 1) -> float:
        """Half of a 95 % interval; of several `comparisons` for all together (Bonferroni)."""
        return t_quantile(1 - LEVEL / 2 / comparisons, self.freedom) * self.error


def error_of_means(values: Mapping[str, Sequence[float]]) -> SeedError | None:
    """Of one recipe's mean over seeds, pooled over all recipes, each with its averages by seed;
    None where none has two."""
    known = [np.asarray(one) for one in values.values() if len(one) > 1]
    if not known:
        return None
    freedom = sum(len(one) - 1 for one in known)
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in known)
    fewest = min(len(one) for one in values.values())
    return SeedError(math.sqrt(squares / freedom / fewest), freedom)


def error_of_differences(values: Mapping[str, Sequence[float]]) -> SeedError | None:
    """Of a difference of two recipes' means over the same seeds, by an additive model of recipe and
    seed; None for one recipe or one seed."""
    seeds = min(len(one) for one in values.values())
    freedom = (len(values) - 1) * (seeds - 1)
    if freedom < 1:
        return None
    table = np.array([one[:seeds] for one in values.values()])
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return SeedError(math.sqrt(2 * float((rest**2).sum()) / freedom / seeds), freedom)


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
