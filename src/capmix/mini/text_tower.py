"""A static text tower: the mean of one 256-dimensional row per token.

Distilled from all-MiniLM-L6-v2 by tools/build_mini: 7 MB instead of the teacher's 84 MB. Word order
is ignored.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from capmix.mini.weights import digest, load_weights, models_folder
from capmix.models.image_pass import unit

DIMENSIONS = 256
MAX_CHARACTERS = 2000
FILES = ("text_tower.safetensors", "tokenizer.json")


class StaticTextTower:
    """Text encoder of the embedded models."""

    dimensions = DIMENSIONS

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(models_folder() / "tokenizer.json"))
        weights = load_weights("text_tower")
        self._table = weights["table"].astype(np.float32) * weights["scale"].astype(np.float32)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids. Texts are truncated after 2,000 characters."""
        clean = [text[:MAX_CHARACTERS].replace("\x00", " ") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, 256); zeros for a text without any known token."""
        tokens = self.tokens(texts)
        lengths = np.array([len(ids) for ids in tokens])
        sums = np.zeros((len(texts), DIMENSIONS), np.float32)
        filled = np.flatnonzero(lengths)
        if len(filled):
            flat = np.concatenate([np.array(tokens[i]) for i in filled])
            starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
            sums[filled] = np.add.reduceat(self._table[flat], starts, axis=0)
        return unit(sums)


@cache
def text_tower() -> StaticTextTower:
    return StaticTextTower()


def text_tower_digest() -> str:
    return digest(*FILES)
