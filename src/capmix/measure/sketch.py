"""HyperLogLog: estimate the number of distinct keys, in 16 KiB per count."""

import numpy as np
import pyarrow as pa

BITS = 14
REGISTERS = 1 << BITS
STANDARD_ERROR = 1.04 / REGISTERS**0.5  # Flajolet et al. 2007, section 1: 0.8%
ALPHA = 0.7213 / (1 + 1.079 / REGISTERS)  # the same, figure 3
BASE = np.uint64(0x9FB21C651E98DF25)  # an arbitrary odd number


class Sketch:
    """Same interface as Distinct, with estimated counts (relative error STANDARD_ERROR)."""

    def __init__(self, levels: int):
        self._registers = np.zeros((levels, REGISTERS), np.uint8)

    def add(self, keys: np.ndarray, levels: np.ndarray) -> None:
        """Add `keys`, uint64 (N,), which must be uniformly distributed hashes."""
        register = (keys >> np.uint64(64 - BITS)).astype(np.int64)
        # The float64 of a number below 2^50 is exact, so its exponent counts the leading zeros.
        rest = keys & np.uint64((1 << (64 - BITS)) - 1)
        rank = (64 - BITS + 1 - np.frexp(rest.astype(np.float64))[1]).astype(np.uint8)
        np.maximum.at(self._registers, (levels, register), rank)

    def merge(self, other: "Sketch") -> None:
        """Add the keys of another sketch."""
        np.maximum(self._registers, other._registers, out=self._registers)

    def counts(self) -> list[int]:
        """Return the estimated number of distinct keys in level 0, in levels 0 and 1, and so
        on."""
        return [_estimate(one) for one in np.maximum.accumulate(self._registers, axis=0)]


def _estimate(registers: np.ndarray) -> int:
    """Estimate a count; with few registers in use, by linear counting (the paper's section 4)."""
    raw = ALPHA * REGISTERS**2 / np.exp2(-registers.astype(np.float64)).sum()
    empty = int((registers == 0).sum())
    if raw <= 2.5 * REGISTERS and empty:
        return round(float(REGISTERS * np.log(REGISTERS / empty)))
    return round(float(raw))


def hashes(values: pa.StringArray) -> np.ndarray:
    """Return a 64-bit hash of each string, uint64 (N,): a polynomial of its bytes, mixed."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)
    offsets = offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    powers = np.cumprod(np.full(len(data) + 1, BASE))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data + np.uint64(1)) * powers[:-1], out=sums[1:])
    inverse = np.uint64(pow(int(BASE), -1, 1 << 64))
    back = np.cumprod(np.full(len(data) + 1, inverse))
    return mixed((sums[offsets[1:]] - sums[offsets[:-1]]) * back[offsets[:-1]])


def mixed(keys: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer: every bit of a key affects about half of the output bits."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys
