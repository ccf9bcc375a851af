"""The embedded demo scorer: a tiny CLIP-like model that needs no network and no GPU."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from capmix.mini.head import Head
from capmix.mini.image_tower import LiteTower
from capmix.mini.text_tower import FILES as TEXT_FILES
from capmix.mini.text_tower import MAX_CHARACTERS
from capmix.mini.weights import MINI_PACKAGES, digest
from capmix.models.tokens import Tokens
from capmix.score.settings import ScoreSettings


class MiniScorer:
    """A frozen EfficientNet-Lite0 and a static text tower with trained projections."""

    name = "mini"
    extra: ClassVar[str | None] = "mini"
    packages: ClassVar[tuple[str, ...]] = MINI_PACKAGES
    device: ClassVar[str] = "cpu"
    keeps_embeddings: ClassVar[bool] = True

    def __init__(self, settings: ScoreSettings = ScoreSettings(), encoder: LiteTower | None = None):
        self.encoder = encoder or LiteTower()
        self._head = Head("scorer")
        weights = digest("scorer.safetensors", "imagenet_names.safetensors", *TEXT_FILES)
        self.settings: dict[str, Any] = {"model": "mini", "weights": weights}
        self.provenance = self.encoder.provenance

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        return self._head.project_images(embeddings)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return Tokens(texts, [len(text) > MAX_CHARACTERS for text in texts])

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        return self._head.encode_texts(inputs)
