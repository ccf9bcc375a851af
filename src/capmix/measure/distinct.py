"""Count distinct keys exactly and in bounded memory.

Keys are partitioned into files by the upper bits of their hash, and each file is sorted separately.
Counts are available for several nested levels, each of which includes the keys of the levels below.
One pass therefore produces a curve over the sample size.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

PARTITIONS = 64
PARTITION_SHIFT = np.uint64(58)
KEPT_KEYS = 4_000_000  # held in memory before they are written to the files
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hash


class Distinct:
    """Counts distinct keys: 64-bit numbers (`width` 1) or pairs of them (`width` 2)."""

    def __init__(self, folder: Path, levels: int, width: int = 1):
        self._folder = folder
        self._levels = levels
        self._width = width
        self._waiting: list[list[np.ndarray]] = [[] for _ in range(levels)]
        self._count = 0
        folder.mkdir(parents=True)

    def add(self, keys: np.ndarray, levels: np.ndarray) -> None:
        """Add `keys`, uint64 (N,) or (N, 2); key i belongs to level `levels[i]`."""
        for level in range(self._levels):
            here = keys[levels == level].reshape(-1, self._width)
            if len(here):
                here[:, 0] *= GOLDEN  # reversible, and spreads keys evenly over the partitions
                self._waiting[level].append(here)
        self._count += len(keys)
        if self._count >= KEPT_KEYS:
            self._write()

    def counts(self) -> list[int]:
        """Return the number of distinct keys in level 0, in levels 0 and 1, and so on."""
        self._write()
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(self._partition, range(PARTITIONS)))
        return [int(count) for count in np.sum(found, axis=0)]

    def _write(self) -> None:
        for level, waiting in enumerate(self._waiting):
            if not waiting:
                continue
            keys = _unique(np.concatenate(waiting))
            cuts = np.searchsorted(keys[:, 0] >> PARTITION_SHIFT, np.arange(PARTITIONS + 1))
            for part in range(PARTITIONS):
                piece = keys[cuts[part] : cuts[part + 1]]
                if len(piece):
                    with open(self._file(level, part), "ab") as stream:
                        stream.write(piece.tobytes())
        self._waiting = [[] for _ in range(self._levels)]
        self._count = 0

    def _partition(self, part: int) -> list[int]:
        seen = np.empty((0, self._width), np.uint64)
        counts = []
        for level in range(self._levels):
            file = self._file(level, part)
            if file.exists():
                more = np.fromfile(file, np.uint64).reshape(-1, self._width)
                seen = _unique(np.concatenate([seen, more]))
            counts.append(len(seen))
        return counts

    def _file(self, level: int, part: int) -> Path:
        return self._folder / f"{level}.{part}"


def _unique(keys: np.ndarray) -> Any:
    if keys.shape[1] == 1:
        ordered = np.sort(keys[:, 0])
        is_new = np.ones(len(ordered), bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
        return ordered[is_new][:, None]
    pairs = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_new]
