"""Find the score that the top fraction of a pool reaches, exactly, in a few hundred kilobytes."""

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 1 << 16


@dataclass(frozen=True)
class Ordered:
    """float32 values as uint32 `numbers` with the same order. NaN is left out, and -0 equals 0.

    `total` is the number of values including NaN.
    """

    total: int
    numbers: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Ordered":
        """Convert `values`, float32 (N,)."""
        is_none = np.isnan(values)
        some = values[~is_none] if is_none.any() else values
        bits = (some + np.float32(0)).view(np.int32)
        flipped = (bits >> 31).view(np.uint32) | np.uint32(0x80000000)
        return cls(len(values), bits.view(np.uint32) ^ flipped)

    def upper(self) -> np.ndarray:
        """Return a histogram of the upper 16 bits, int32 (BINS,)."""
        found: np.ndarray = np.bincount(self.numbers >> 16, minlength=BINS).astype(np.int32)
        return found

    def lower(self, upper: int) -> np.ndarray:
        """Return the lower 16 bits of the numbers whose upper 16 bits are `upper`, uint16 (M,)."""
        found: np.ndarray = self.numbers[self.numbers >> 16 == upper].astype(np.uint16)
        return found


@dataclass
class TopFraction:
    """Finds the (n + 1)-th largest of N float32 values, n = int(N * fraction).

    The rule is DataComp's (baselines/apply_filter.py, get_threshold): missing values (NaN) count in
    N and sort last. If there are fewer than n + 1 values (`is_short`), the threshold is -inf and
    all values pass; DataComp's is NaN in this case, and none passes. Values are processed in
    batches, in two passes, in any order: `count` adds the histogram of the upper 16 bits, `refine`
    the lower 16 bits of the values in `bin`, which contains the threshold.
    """

    fraction: float
    total: int = 0
    upper: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    lower: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def count(self, total: int, upper: np.ndarray) -> None:
        """Add a batch in the first pass (see Ordered)."""
        self.total += total
        self.upper += upper

    def refine(self, lower: np.ndarray) -> None:
        """Add a batch in the second pass, after `count` was called for all batches."""
        self.lower += np.bincount(lower, minlength=BINS)

    @property
    def bin(self) -> int | None:
        """The upper 16 bits of the threshold; None if there is no threshold."""
        place = self._bin()
        return None if place is None else place[0]

    @property
    def is_short(self) -> bool:
        """Whether there are fewer than n + 1 values."""
        return int(self.total * self.fraction) >= int(self.upper.sum())

    @property
    def asked(self) -> tuple[int, int]:
        """The number of values that the fraction requests, and the number of values."""
        return int(self.total * self.fraction), int(self.upper.sum())

    @property
    def lacks(self) -> bool:
        """Whether there are fewer values than the fraction requests."""
        wanted, there = self.asked
        return there < wanted

    def value(self) -> float:
        """Return the threshold, a float32 number or -inf."""
        place = self._bin()
        if place is None:
            return -math.inf
        upper, before = place
        position = int(self.total * self.fraction) - before
        lower = _from_top(self.lower, position)[0]
        return float(_value(np.uint32(upper << 16 | lower)))

    def _bin(self) -> tuple[int, int] | None:
        """Return the bin that contains the threshold, and the number of values above that bin."""
        position = int(self.total * self.fraction)
        return None if self.is_short else _from_top(self.upper, position)


def _from_top(counts: np.ndarray, position: int) -> tuple[int, int]:
    """Return the bin of the value at `position`, counted from the top, and the number of values
    above that bin."""
    above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(above, position, side="right"))
    return len(counts) - 1 - index, int(above[index] - counts[::-1][index])


def _value(ordered: np.uint32) -> np.float32:
    bits = ordered & np.uint32(0x7FFFFFFF) if ordered >> 31 else ~ordered
    return np.uint32(bits).view(np.float32)
