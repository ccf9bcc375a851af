"""Projections of image features and static text vectors into a common space.

An image embedding is the sum of a linear map of the features and a linear map of the ConSE vector
(arXiv 1312.5650): the mean of the vectors of the ten most likely ImageNet class names, weighted by
the probabilities of the classes.
"""

from collections.abc import Sequence

import numpy as np

from capmix.mini.image_tower import imagenet_classifier
from capmix.mini.text_tower import text_tower
from capmix.mini.weights import load_weights
from capmix.models.image_pass import unit

CONSE_CLASSES = 10


class Head:
    """A head with the weights of `<name>.safetensors`.

    The weights are features (1280, D), conse (256, D) and text (256, D). Products are computed in
    float64 and then rounded: float32 results depend on the number of threads, but all workers must
    compute the same scores.
    """

    def __init__(self, name: str):
        self._weights = {k: v.astype(np.float64) for k, v in load_weights(name).items()}
        self._class_vectors = load_weights("imagenet_names")["vectors"].astype(np.float64)
        self._classifier, self._bias = (array.astype(np.float64) for array in imagenet_classifier())

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Return unit vectors, float32 (N, D), for image features, float16 (N, 1280)."""
        features, conse = image_inputs(
            embeddings, self._classifier, self._bias, self._class_vectors
        )
        return unit(features @ self._weights["features"] + conse @ self._weights["conse"])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, D)."""
        return unit(text_tower().encode(texts) @ self._weights["text"])


def image_inputs(
    embeddings: np.ndarray, classifier: np.ndarray, bias: np.ndarray, class_vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a head's inputs for image features (N, 1280).

    These are the square roots of the features, normalized (N, 1280), and ConSE vectors (N, 256).
    """
    features = embeddings.astype(classifier.dtype)
    logits = features @ classifier.T + bias
    likelihood = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = np.argsort(-logits, axis=1, kind="stable")[:, :CONSE_CLASSES]
    weights = np.zeros_like(likelihood)
    np.put_along_axis(weights, best, np.take_along_axis(likelihood, best, axis=1), axis=1)
    return unit(np.sqrt(np.maximum(features, 0))), unit(weights @ class_vectors)
