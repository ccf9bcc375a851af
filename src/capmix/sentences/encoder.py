"""The sentence encoder protocol: models that embed a text so that texts can be compared."""

from dataclasses import dataclass
from typing import Any, Protocol

from capmix.models.tokens import TextEncoder


@dataclass(frozen=True)
class EncoderSettings:
    """How a sentence encoder is loaded.

    `prefix` is put before each text, and `batch` is the number of texts that the model encodes at
    a time.
    """

    model: str
    revision: str | None = None
    prefix: str = ""
    device: str = "auto"
    batch: int = 256


class SentenceEncoder(TextEncoder, Protocol):
    """A model that embeds texts as unit vectors whose dot product is their similarity.

    `settings` contains the model and a digest of its weights: everything that a vector depends on.
    """

    settings: dict[str, Any]
