"""Encode many texts with a text encoder, in batches."""

from collections.abc import Sequence

import numpy as np

from capmix.engine.progress import progress
from capmix.models.tokens import TextEncoder, encode_texts

TEXTS_AT_ONCE = 512


def encode_all(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors, float32 (N, D), of N texts. N must be at least 1."""
    pieces = []
    starts = range(0, len(texts), TEXTS_AT_ONCE)
    for start in progress("encode texts", "batch", work=starts):
        pieces.append(encode_texts(encoder, texts[start : start + TEXTS_AT_ONCE]))
    return np.concatenate(pieces)
