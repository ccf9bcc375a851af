"""Near duplicates within clusters: SemDeDup (arXiv 2303.09540, section 3).

The samples of a cluster are visited from the least to the most similar to its centroid. A sample
whose similarity to an earlier one is over 1 - epsilon repeats that sample. The first sample of a
group of near duplicates is kept.
"""

import numpy as np
import pyarrow as pa

from capmix.annotate.vectors import Columns, PoolVectors

BLOCK = 4_096


def near_duplicates(
    vectors: PoolVectors, clusters: np.ndarray, similarity: np.ndarray, epsilon: float
) -> Columns:
    """Compute columns `repeats` (a near duplicate of an earlier sample) and `closest`.

    `closest` is the largest similarity to an earlier sample of the cluster; -1 for the first.
    `clusters` and `similarity` (N,) are the columns of the clusters annotation.
    """
    closest = np.full(len(vectors), -1.0, np.float32)
    order = np.lexsort((np.arange(len(vectors)), similarity, clusters))
    ends = np.flatnonzero(np.diff(clusters[order])) + 1
    for members in np.split(order, ends):
        closest[members] = _closest_before(vectors, members)
    return {
        "repeats": (closest > 1 - epsilon, pa.bool_()),
        "closest": (closest, pa.float32()),
    }


def _closest_before(vectors: PoolVectors, members: np.ndarray) -> np.ndarray:
    """Return the largest dot product with an earlier member; -1 for the first."""
    found = np.full(len(members), -1.0, np.float32)
    for start in range(0, len(members), BLOCK):
        rows = vectors.take(members[start : start + BLOCK])
        for other in range(0, start + 1, BLOCK):
            columns = rows if other == start else vectors.take(members[other : other + BLOCK])
            products = rows @ columns.T
            if other == start:
                products[np.triu_indices(len(rows))] = -1.0
            here = slice(start, start + len(rows))
            found[here] = np.maximum(found[here], products.max(axis=1))
    return found
