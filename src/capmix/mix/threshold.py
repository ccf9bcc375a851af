"""The score that the top fraction of a pool reaches: exact, in a few hundred kilobytes."""

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 1 << 16


@dataclass(frozen=True)
class Ordered:
    """N float32 values as uint32 `numbers` that sort as they do; those that are NaN are left out
    and -0 counts as 0."""

    total: int
    numbers: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Ordered":
        """`values`: float32 (N,)."""
        is_none = np.isnan(values)
        some = values[~is_none] if is_none.any() else values
        bits = (some + np.float32(0)).view(np.int32)
        flipped = (bits >> 31).view(np.uint32) | np.uint32(0x80000000)
        return cls(len(values), bits.view(np.uint32) ^ flipped)

    def upper(self) -> np.ndarray:
        """int32 (BINS,): how many have each number as their upper 16 bits."""
        found: np.ndarray = np.bincount(self.numbers >> 16, minlength=BINS).astype(np.int32)
        return found

    def lower(self, upper: int) -> np.ndarray:
        """uint16 (M,): the lower 16 bits of those with these upper ones."""
        found: np.ndarray = self.numbers[self.numbers >> 16 == upper].astype(np.uint16)
        return found


@dataclass
class TopFraction:
    """Finds the (n + 1)-th largest of N float32 values, n = int(N * fraction).

    The rule is DataComp's (baselines/apply_filter.py, get_threshold): a value that is missing (NaN)
    counts in N and sorts last. Where fewer values than n + 1 are there, the threshold is -inf and
    all of them pass; DataComp's is NaN then, which none reaches (`is_short`). Values come in
    batches, all of them twice, in any order: `count` takes how many lie in each bin of the upper 16
    bits, `refine` the lower 16 of those in `bin`, which holds the threshold.
    """

    fraction: float
    total: int = 0
    upper: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    lower: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def count(self, total: int, upper: np.ndarray) -> None:
        """First time; see Ordered."""
        self.total += total
        self.upper += upper

    def refine(self, lower: np.ndarray) -> None:
        """Second time, once `count` has seen all of them."""
        self.lower += np.bincount(lower, minlength=BINS)

    @property
    def bin(self) -> int | None:
        """None where there is no threshold."""
        place = self._bin()
        return None if place is None else place[0]

    @property
    def is_short(self) -> bool:
        """Whether there are fewer values than n + 1."""
        return int(self.total * self.fraction) >= int(self.upper.sum())

    @property
    def asked(self) -> tuple[int, int]:
        """How many values the fraction asks for, and how many there are."""
        return int(self.total * self.fraction), int(self.upper.sum())

    @property
    def lacks(self) -> bool:
        """Whether there are fewer values than the fraction asks for."""
        wanted, there = self.asked
        return there < wanted

    def value(self) -> float:
        """The threshold, a float32 number or -inf."""
        place = self._bin()
        if place is None:
            return -math.inf
        upper, before = place
        position = int(self.total * self.fraction) - before
        lower = _from_top(self.lower, position)[0]
        return float(_value(np.uint32(upper << 16 | lower)))

    def _bin(self) -> tuple[int, int] | None:
        """The bin that holds the threshold, and how many values lie above that bin."""
        position = int(self.total * self.fraction)
        return None if self.is_short else _from_top(self.upper, position)


def _from_top(counts: np.ndarray, position: int) -> tuple[int, int]:
    """The bin of the value at `position`, counted down from the top bin, and how many lie above."""
    above = np.cumsum(counts[::-1])
    index = int(np.searchsorted(above, position, side="right"))
    return len(counts) - 1 - index, int(above[index] - counts[::-1][index])


def _value(ordered: np.uint32) -> np.float32:
    bits = ordered & np.uint32(0x7FFFFFFF) if ordered >> 31 else ~ordered
    return np.uint32(bits).view(np.float32)
