"""The text sides of a probe: a projection of frozen word vectors, or a small transformer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from capmix.mini.text_tower import DIMENSIONS, text_tower, text_tower_digest

if TYPE_CHECKING:
    import torch

    Weights = dict[str, "torch.Tensor"]


TEXTS_AT_ONCE = 16_384


class TextSide(Protocol):
    """How a probe reads texts.

    `digest` identifies its frozen weights or its tokenizer, `config` holds settings that the
    default side does not have, and `steps` is the default length of the training.
    """

    name: ClassVar[str]
    steps: ClassVar[int]

    @property
    def digest(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]: ...

    def prepare(self, texts: Sequence[str]) -> np.ndarray:
        """Return the input of `encode`, one row per text."""
        ...

    def start(self, dimensions: int, generator: "torch.Generator") -> "Weights":
        """Return initial weights by name, for output vectors of this many dimensions."""
        ...

    def encode(self, weights: "Weights", prepared: np.ndarray) -> "torch.Tensor":
        """Return vectors (N, D), not normalized."""
        ...

    def project(self, weights: Mapping[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
        """Return vectors, float32 (N, D), not normalized, of a trained probe."""
        ...


class WordTexts:
    """A linear projection of the embedded text tower: the mean of a frozen vector per token."""

    name: ClassVar[str] = "words"
    steps: ClassVar[int] = 100
    config: ClassVar[dict[str, Any]] = {}

    @property
    def digest(self) -> str:
        return text_tower_digest()

    def prepare(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors, float32 (N, 256)."""
        found = np.empty((len(texts), DIMENSIONS), np.float32)
        for begin in range(0, len(texts), TEXTS_AT_ONCE):  # tokenized texts take kilobytes each
            some = texts[begin : begin + TEXTS_AT_ONCE]
            found[begin : begin + len(some)] = text_tower().encode(some)
        return found

    def start(self, dimensions: int, generator: "torch.Generator") -> "Weights":
        return {"text_projection": projection((DIMENSIONS, dimensions), generator)}

    def encode(self, weights: "Weights", prepared: np.ndarray) -> "torch.Tensor":
        import torch

        return torch.from_numpy(prepared) @ weights["text_projection"]

    def project(self, weights: Mapping[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
        projected: np.ndarray = text_tower().encode(texts) @ weights["text_projection"]
        return projected


def projection(shape: tuple[int, int], generator: "torch.Generator") -> "torch.Tensor":
    """Return random weights (inputs, outputs) that keep the length of vectors on average."""
    import torch

    return torch.randn(shape, generator=generator).div_(shape[0] ** 0.5).requires_grad_()
