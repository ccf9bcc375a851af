"""Exact minimum, maximum, mean and standard deviation of the values of a pool, in one pass.

Sums are integers: a float32 number is a whole number of 24 bits times a power of two. They are
therefore exact, and the same for any batches and any order.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

NORMALISED, ZSCORE = "normalised", "zscore"
UNIT = 173  # sums count units of 2^-173, a power of two below every bit of a float32 mantissa
BITS = 24  # of a float32 mantissa
POWERS = 304  # of two, from 2^-173 to beyond the largest float32


@dataclass(frozen=True)
class Spread:
    """The finite values of some samples: how many, the least, the greatest, and exact sums.

    `total` counts units of 2^-UNIT, and `squares`, the sum of the squares, units of 2^-(2 UNIT).
    """

    count: int = 0
    least: float = math.inf
    most: float = -math.inf
    total: int = 0
    squares: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Measure `values`, float32 (N,). NaN and infinite values are left out."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if not len(finite):
            return cls()
        fractions, exponents = np.frexp(finite)
        whole = (fractions * (1 << BITS)).astype(np.int64)  # exact
        powers = exponents - BITS + UNIT
        squares = whole * whole
        upper, lower = squares >> BITS, squares & ((1 << BITS) - 1)
        return cls(
            len(finite),
            float(finite.min()),
            float(finite.max()),
            _sum(whole, powers),
            (_sum(upper, 2 * powers) << BITS) + _sum(lower, 2 * powers),
        )

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(
            self.count + other.count,
            min(self.least, other.least),
            max(self.most, other.most),
            self.total + other.total,
            self.squares + other.squares,
        )

    def mean(self) -> float:
        """Return the mean, correctly rounded; 0 if there are no values."""
        return float(Fraction(self.total, max(1, self.count) << UNIT))

    def deviation(self) -> float:
        """Return the population standard deviation (divided by N), 0 if there are no values."""
        above = self.count * self.squares - self.total**2
        return _root(Fraction(above, max(1, self.count) ** 2 << 2 * UNIT))

    def line(self, function: str) -> tuple[float, float]:
        """Return (a, b), so that `function` of x is (x - a) / b.

        b is 1 if all values are equal, so that the result for each of them is 0.
        """
        if not self.count:
            return 0.0, 1.0
        if function == ZSCORE:
            return self.mean(), self.deviation() or 1.0
        return self.least, self.most - self.least or 1.0


def _sum(whole: np.ndarray, powers: np.ndarray) -> int:
    """Return the exact sum of whole * 2^powers.

    float64 counts exactly up to 2^53, which 2^29 values of 24 bits do not exceed.
    """
    sums = np.bincount(powers, weights=whole, minlength=2 * POWERS)
    return sum(int(sums[power]) << int(power) for power in np.flatnonzero(sums))


def _root(value: Fraction) -> float:
    """Return the square root, computed with at least 120 bits and rounded once."""
    if not value:
        return 0.0
    bits = value.denominator.bit_length() - value.numerator.bit_length()
    shift = max(0, bits // 2 + 128)
    root = math.isqrt((value.numerator << 2 * shift) // value.denominator)
    return float(Fraction(root, 1 << shift))
