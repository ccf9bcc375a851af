"""Noise of texts: the distribution of image-text similarity, and how sources agree."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

BINS = 100
TOP = 0.3  # the fraction of raw texts that most of the paper's filters keep


class Noise:
    """The scores of one source, held in memory (four bytes per sample)."""

    def __init__(self) -> None:
        self._scores: list[np.ndarray] = []

    def add(self, scores: pa.ChunkedArray) -> None:
        """Add float32 scores; null for none."""
        self._scores.append(scores.to_numpy().astype(np.float32))

    def all(self) -> np.ndarray:
        """Return all scores added so far, float32 (samples,), NaN for none."""
        if len(self._scores) > 1:
            self._scores = [np.concatenate(self._scores)]
        return self._scores[0] if self._scores else np.empty(0, np.float32)

    def result(self) -> dict[str, Any]:
        """Return the number of scores, their mean, deciles (11 values from minimum to maximum), top
        (the score that the top 30% reach), and a histogram of BINS equal bins (`edges`,
        `counts`)."""
        scores = self.all()
        scores = np.sort(scores[np.isfinite(scores)])
        if not len(scores):
            return {"scored": 0, "mean": None, "deciles": [], "top": None, "histogram": None}
        least, greatest = float(scores[0]), float(scores[-1])
        if greatest - least < 1e-6:  # too close for BINS distinct edges
            least, greatest = least - 0.005, greatest + 0.005
        counts, edges = np.histogram(scores.astype(np.float64), BINS, (least, greatest))
        return {
            "scored": len(scores),
            "mean": float(scores.mean(dtype=np.float64)),
            "deciles": [float(v) for v in np.quantile(scores, np.linspace(0, 1, 11))],
            "top": float(np.quantile(scores, 1 - TOP)),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }


def agreement(noise: Mapping[str, Noise]) -> list[dict[str, Any]]:
    """Compare each pair of sources over the samples that have both scores.

    Returns for each pair `correlation`, Pearson's; `first_higher`, the share of samples with a
    higher score for the first source; `difference`, the mean of first minus second; and
    `above_top`, the share of all scored texts of the second source that reach the score of the top
    30% of the first source.
    """
    found = []
    tops = {name: of_source.result()["top"] for name, of_source in noise.items()}
    for first, second in combinations(noise, 2):
        a, b = noise[first].all().astype(np.float64), noise[second].all().astype(np.float64)
        top, scored = tops[first], b[np.isfinite(b)]
        above = float(np.mean(scored >= top)) if top is not None and len(scored) else None
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        varies = len(a) > 1 and a.std() > 0 and b.std() > 0
        found.append(
            {
                "first": first,
                "second": second,
                "samples": len(a),
                "correlation": float(np.corrcoef(a, b)[0, 1]) if varies else None,
                "first_higher": float(np.mean(a > b)) if len(a) else None,
                "difference": float(np.mean(a - b)) if len(a) else None,
                "above_top": above,
            }
        )
    return found
