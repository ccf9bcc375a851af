"""NormSim: the similarity of an image to a reference set (arXiv 2405.19547, section 3.2)."""

import numpy as np
import pyarrow as pa

from capmix.annotate.vectors import Columns, PoolVectors

BLOCK = 8_192


def norm_similarity(vectors: PoolVectors, reference: np.ndarray, norm: str) -> Columns:
    """Compute column `value`: a norm of an image's cosine similarities to all reference images.

    For `inf` it is the largest similarity, for `2` the square root of the sum of squares.
    """
    if norm == "2":
        # The sum of squares is x' R x, where R is the sum of the references' outer products, so
        # the similarities themselves are not needed.
        outer = (reference.T @ reference).astype(np.float64)
        found = [_euclidean(batch, outer) for batch in vectors.batches()]
    else:
        found = [_largest(batch, reference) for batch in vectors.batches()]
    return {"value": (np.concatenate(found), pa.float32())}


def _euclidean(batch: np.ndarray, outer: np.ndarray) -> np.ndarray:
    squares = np.einsum("nd,de,ne->n", batch, outer, batch, optimize=True)
    norms: np.ndarray = np.sqrt(np.maximum(squares, 0)).astype(np.float32)
    return norms


def _largest(batch: np.ndarray, reference: np.ndarray) -> np.ndarray:
    best = np.full(len(batch), -np.inf, np.float32)
    for start in range(0, len(reference), BLOCK):
        best = np.maximum(best, (batch @ reference[start : start + BLOCK].T).max(axis=1))
    return best
