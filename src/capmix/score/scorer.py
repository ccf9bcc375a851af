"""The scorer protocol: models that compute the cosine similarity of images and texts."""

from typing import Any, Protocol

import numpy as np

from capmix.models.image_pass import ImageEncoder
from capmix.models.tokens import TextEncoder


class Scorer(TextEncoder, Protocol):
    """A model that embeds images and texts in one space.

    `settings` contains the model and a digest of its weights.
    """

    name: str
    settings: dict[str, Any]

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder whose embeddings the scorer projects."""
        ...

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Project float16 (N, dimensions) image embeddings to unit vectors, float32 (N, D)."""
        ...
