"""negCLIPLoss (s-CLIPLoss): similarity, normalized by the similarities to a whole batch.

arXiv 2405.19547, section 3.1: in a random batch B that contains pair i,

    value_i = s_ii - t / 2 * (log sum_j exp(s_ij / t) + log sum_j exp(s_ji / t)),  j in B,

with cosine similarities s and the temperature t, averaged over several random batches. The defaults
are the paper's settings: t = 0.01 (the temperature of CLIP), 10 batches of 32,768 pairs.
"""

import numpy as np

from capmix.annotate.settings import BATCH, ROUNDS, TEMPERATURE
from capmix.annotate.vectors import PoolVectors

BLOCK = 1_024


def negative_clip_loss(
    images: PoolVectors,
    texts: PoolVectors,
    temperature: float = TEMPERATURE,
    batch: int = BATCH,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> np.ndarray:
    """Return float32 (N,) for N pairs. In each round, all pairs are split into random batches."""
    total = np.zeros(len(images), np.float64)
    for number in range(rounds):
        order = np.random.default_rng([seed, number]).permutation(len(images))
        pieces = max(1, round(len(order) / batch))
        for members in np.array_split(order, pieces):
            here = np.sort(members)
            total[here] += _batch_values(images.take(here), texts.take(here), temperature)
    found: np.ndarray = (total / rounds).astype(np.float32)
    return found


def _batch_values(images: np.ndarray, texts: np.ndarray, temperature: float) -> np.ndarray:
    """Return float64 (n,). Computes the n x n products in blocks of rows, to save memory."""
    of_image = np.empty(len(images))
    of_text = np.zeros(len(images))
    own = np.einsum("nd,nd->n", images, texts, dtype=np.float64)
    for start in range(0, len(images), BLOCK):
        products = images[start : start + BLOCK] @ texts.T
        # Similarities are at most 1, so exp cannot overflow; underflows are negligible in the sum.
        shares = np.exp((products - 1) / temperature, dtype=np.float64)
        of_image[start : start + BLOCK] = shares.sum(axis=1)
        of_text += shares.sum(axis=0)
    common = 1 + temperature / 2 * (np.log(of_image) + np.log(of_text))
    found: np.ndarray = own - common
    return found
