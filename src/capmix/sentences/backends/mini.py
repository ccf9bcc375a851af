"""The embedded static text tower: English, 7 MB, no network and no GPU."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from capmix.mini.text_tower import MAX_CHARACTERS, text_tower, text_tower_digest
from capmix.models.tokens import Tokens
from capmix.sentences.encoder import EncoderSettings


class MiniSentences:
    """Encodes sentences with the static tower that was distilled from all-MiniLM-L6-v2.

    A text without any known token has the vector 0, whose similarity to every text is 0.
    """

    extra: ClassVar[str | None] = "mini"
    packages: ClassVar[tuple[str, ...]] = ("tokenizers", "safetensors")
    device: ClassVar[str] = "cpu"
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: EncoderSettings):
        self._tower = text_tower()
        self.settings: dict[str, Any] = {"model": "mini", "weights": text_tower_digest()}

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return Tokens(texts, [len(text) > MAX_CHARACTERS for text in texts])

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        return self._tower.encode(inputs)
