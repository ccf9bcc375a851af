"""Count how many samples reach which score thresholds, for several sources at once.

The report can move thresholds between steps of the scale without reading scores again: the number
of samples kept by a recipe of the form "the first source whose score reaches its threshold" is a
sum over cells.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

STEPS = 120  # approximate number between the lowest and highest score of the first batch
MOST_CELLS = 200_000
MOST_SOURCES = 6
NO_SCORE = -(2**31)


class StepCounts:
    """Counts samples by the step that the score of each source reaches, for up to MOST_SOURCES
    sources.

    Steps are the float32 numbers nearest to integer multiples of a step size. A score reaches the
    highest step that it is not below, which matches a recipe's `score >= 0.215`. If there are too
    many cells, pairs of adjacent steps are merged.
    """

    def __init__(self, sources: Sequence[str]):
        self.sources = sources[:MOST_SOURCES]
        self._unit = 0  # the step size is unit / scale
        self._scale = 1
        self._cells: Counter[tuple[int, ...]] = Counter()

    def add(self, scores: Sequence[pa.ChunkedArray]) -> None:
        """Add the scores of a batch of samples, one column per source; null for no score."""
        if not self.sources:
            return
        columns = [column.to_numpy().astype(np.float32) for column in scores[:MOST_SOURCES]]
        if not self._unit:
            self._choose(columns)
        reached = np.stack([steps_of(one, self._unit, self._scale) for one in columns], axis=1)
        cells, counts = np.unique(reached, axis=0, return_counts=True)
        for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
            self._cells[tuple(cell)] += count
        while len(self._cells) > MOST_CELLS:
            self._coarsen()

    def result(self) -> dict[str, Any] | None:
        """Return `sources`, `unit` and `scale` (step i is at i * unit / scale), and `cells`: the
        steps that the sources' scores reach, None for no score, and the number of samples."""
        if not self._cells:
            return None
        cells = [
            [*(None if step == NO_SCORE else step for step in cell), count]
            for cell, count in sorted(self._cells.items())
        ]
        return {
            "sources": list(self.sources),
            "unit": self._unit,
            "scale": self._scale,
            "cells": cells,
        }

    def _choose(self, columns: Sequence[np.ndarray]) -> None:
        """Choose the step size: 1, 2 or 5 times a power of ten."""
        values = np.concatenate(columns)
        values = values[np.isfinite(values)]
        span = float(values.max() - values.min()) if len(values) else 1.0
        wanted = max(span, 1e-6) / STEPS
        power = math.floor(math.log10(wanted))
        unit = next(one for one in (1, 2, 5, 10) if one * 10.0**power >= wanted)
        self._unit = unit * 10**power if power > 0 else unit
        self._scale = 10**-power if power < 0 else 1

    def _coarsen(self) -> None:
        """Merge pairs of adjacent steps. The remaining steps keep their values.

        Repeated merging leaves only steps -1 and 0, and thus at most 3^6 cells.
        """
        coarser: Counter[tuple[int, ...]] = Counter()
        for cell, count in self._cells.items():
            joined = tuple(step if step == NO_SCORE else step // 2 for step in cell)
            coarser[joined] += count
        self._cells = coarser
        self._unit *= 2


def steps_of(values: np.ndarray, unit: int, scale: int) -> np.ndarray:
    """Return the highest step that each score (float32) reaches, int64; NO_SCORE for none."""
    known = np.isfinite(values)
    steps = np.full(len(values), NO_SCORE, np.int64)
    close = np.floor(values[known].astype(np.float64) * scale / unit).astype(np.int64)
    # The quotient may be off by one for scores at a step, so compare with the step's value.
    close -= values[known] < step_value(close, unit, scale)
    close += values[known] >= step_value(close + 1, unit, scale)
    steps[known] = close
    return steps


def step_value(steps: np.ndarray, unit: int, scale: int) -> np.ndarray:
    """Return the scores at these steps, float32, equal to the decimal numbers in SQL."""
    return (steps.astype(np.float64) * unit / scale).astype(np.float32)
