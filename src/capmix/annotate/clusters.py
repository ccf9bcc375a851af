"""k-means clustering of image embeddings, and the clusters nearest to a reference set.

DataComp's image-based filtering (arXiv 2304.14108, section 3; baselines/image_based_clustering.py
and apply_filter.py): unit vectors are clustered by dot product. A sample is near the reference if
its nearest centroid is also the nearest centroid of a reference image.
"""

import logging

import numpy as np
import pyarrow as pa

from capmix.annotate.vectors import Columns, PoolVectors
from capmix.errors import UserError
from capmix.models.registry import require

log = logging.getLogger(__name__)

POINTS_PER_CENTROID = 256  # the number that faiss trains with at most
MAX_TRAINING_VECTORS = 4_000_000
MOST_CLUSTERS = 100_000  # as in DataComp
ITERATIONS = 20


def cluster(
    vectors: PoolVectors, clusters: int | None, reference: np.ndarray | None, seed: int
) -> Columns:
    """Compute columns `cluster` (number), `similarity` (to the centroid) and `near_reference`.

    `near_reference` is computed only with a reference. The default number of clusters is one per
    256 samples, at most 100,000.
    """
    wanted = clusters or max(1, min(MOST_CLUSTERS, len(vectors) // POINTS_PER_CENTROID))
    centroids = _centroids(vectors, wanted, seed)
    found = [_nearest(batch, centroids) for batch in vectors.batches()]
    numbers = np.concatenate([number for number, _ in found])
    columns: Columns = {
        "cluster": (numbers, pa.int32()),
        "similarity": (np.concatenate([one for _, one in found]), pa.float32()),
    }
    if reference is not None:
        near = np.unique(_nearest(reference, centroids)[0])
        columns["near_reference"] = (np.isin(numbers, near), pa.bool_())
        log.info("%s of %s clusters are near the reference", f"{len(near):,}", f"{wanted:,}")
    return columns


def _centroids(vectors: PoolVectors, clusters: int, seed: int) -> np.ndarray:
    """Return unit vectors, float32 (clusters, D). Uses a GPU if faiss supports one."""
    require(["faiss"], "annotate clusters", "clusters")
    import faiss

    if clusters > len(vectors):
        raise UserError(f"--clusters {clusters}: there are only {len(vectors)} images")
    most = min(len(vectors), POINTS_PER_CENTROID * clusters, MAX_TRAINING_VECTORS)
    chosen = np.random.default_rng(seed).choice(len(vectors), most, replace=False)
    training = vectors.take(np.sort(chosen))
    kmeans = faiss.Kmeans(
        training.shape[1],
        clusters,
        niter=ITERATIONS,
        seed=seed,
        spherical=True,
        gpu=getattr(faiss, "get_num_gpus", lambda: 0)() > 0,
        max_points_per_centroid=POINTS_PER_CENTROID,
        min_points_per_centroid=1,
    )
    kmeans.train(training)
    assert kmeans.centroids is not None
    return np.asarray(kmeans.centroids)


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the centroid with the largest dot product, and that product."""
    best = np.full(len(vectors), -np.inf, np.float32)
    numbers = np.zeros(len(vectors), np.int32)
    for start in range(0, len(centroids), 8_192):
        products = vectors @ centroids[start : start + 8_192].T
        here = products.argmax(axis=1)
        value = products[np.arange(len(vectors)), here]
        better = value > best
        best[better], numbers[better] = value[better], here[better] + start
    return numbers, best
