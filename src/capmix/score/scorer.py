"""What a scorer is: a model that gives the cosine similarity of an image and a text."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from capmix.models.image_pass import ImageEncoder


class Scorer(Protocol):
    """Projects images and texts into one space. `settings` names the model and its weights."""

    name: str
    settings: dict[str, Any]

    @property
    def encoder(self) -> ImageEncoder:
        """The model whose embeddings the scorer projects."""
        ...

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        """Unit vectors, float32 (N, D), of the encoder's float16 (N, dimensions) embeddings."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        ...

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are longer than the scorer reads."""
        ...
