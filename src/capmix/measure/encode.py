"""Encode many texts with a scorer's text tower, in batches."""

from collections.abc import Sequence

import numpy as np

from capmix.engine.progress import progress
from capmix.score.scorer import Scorer

TEXTS_AT_ONCE = 512


def encode_all(scorer: Scorer, texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors, float32 (N, D), of N texts. N must be at least 1."""
    pieces = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in progress("encode texts", "batch", work=starts):
        pieces.append(scorer.encode_texts(texts[start : start + TEXTS_AT_ONCE]))
    return np.concatenate(pieces)
