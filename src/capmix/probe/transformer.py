"""A one-layer text transformer, trained from scratch over frozen image vectors.

One pre-norm layer (arXiv 2002.04745) of full attention over learned embeddings of tokens and
positions; the mean of the last states is projected. Initialized like CLIP's text tower, arXiv
2103.00020, with one layer.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from capmix.errors import UserError, reason
from capmix.mini.text_tower import MAX_CHARACTERS
from capmix.mini.weights import models_folder

if TYPE_CHECKING:
    import torch

    Weights = dict[str, "torch.Tensor"]

PADDING, START, FIRST = 0, 1, 2  # FIRST is the tokenizer's id 0
HEAD_WIDTH = 32
TEXTS_AT_ONCE = 1024
MAX_TOKENIZER_BYTES, MAX_VOCABULARY = 1 << 25, 1 << 18


@dataclass(frozen=True)
class TransformerTexts:
    """A transformer of this `width` that reads the first `context` tokens of a text.

    `tokenizer` is the path of a tokenizer.json; None is the embedded model's. Every text begins
    with a start token, so a text without any token has a vector too.
    """

    context: int = 32
    width: int = 128
    tokenizer: str | None = None
    name: ClassVar[str] = "transformer"
    steps: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        if self.width % HEAD_WIDTH:
            raise UserError(f"--width {self.width}: expected a multiple of {HEAD_WIDTH}")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._file).hexdigest()[:16]

    @property
    def config(self) -> dict[str, Any]:
        return {"text": self.name, "context": self.context, "width": self.width}

    @cached_property
    def _file(self) -> bytes:
        path = Path(self.tokenizer) if self.tokenizer else models_folder() / "tokenizer.json"
        try:
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise UserError(f"--tokenizer {path}: larger than {MAX_TOKENIZER_BYTES:,} bytes")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"--tokenizer {path}: {reason(error)}") from error

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            found = Tokenizer.from_str(self._file.decode("utf-8"))
        except Exception as error:  # tokenizers raises Exception itself
            why = f"{error}"[:200]
            raise UserError(f"--tokenizer {self.tokenizer}: not a tokenizer.json: {why}") from error
        if (size := found.get_vocab_size()) > MAX_VOCABULARY:
            raise UserError(
                f"--tokenizer {self.tokenizer}: {size:,} tokens, expected at most "
                f"{MAX_VOCABULARY:,}"
            )
        found.no_padding()
        found.no_truncation()
        return found

    def prepare(self, texts: Sequence[str]) -> np.ndarray:
        """Return token ids, int32 (N, context): a start token, the text, then padding (0)."""
        ids = np.full((len(texts), self.context), PADDING, np.int32)
        ids[:, 0] = START
        for begin in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[begin : begin + TEXTS_AT_ONCE]
            clean = [text[:MAX_CHARACTERS].replace("\x00", " ") for text in some]
            encodings = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)
            for row, encoding in enumerate(encodings, begin):
                found = encoding.ids[: self.context - 1]
                ids[row, 1 : 1 + len(found)] = np.array(found, np.int64) + FIRST
        return ids

    def start(self, dimensions: int, generator: "torch.Generator") -> "Weights":
        """Return initial weights, float32, by name; matrices are (inputs, outputs)."""
        import torch

        width = self.width
        vocabulary = max(self._tokenizer.get_vocab().values(), default=0) + 1 + FIRST
        deviations = {
            "text_token": ((vocabulary, width), 0.02),
            "text_position": ((self.context, width), 0.01),
            "text_attention": ((width, 3 * width), width**-0.5),
            "text_attention_out": ((width, width), (2 * width) ** -0.5),
            "text_up": ((width, 4 * width), (2 * width) ** -0.5),
            "text_down": ((4 * width, width), (2 * width) ** -0.5),
            "text_projection": ((width, dimensions), width**-0.5),
        }
        weights = {
            name: torch.randn(shape, generator=generator).mul_(deviation)
            for name, (shape, deviation) in deviations.items()
        }
        for norm in ("text_norm1", "text_norm2", "text_norm3"):
            weights |= {f"{norm}_scale": torch.ones(width), f"{norm}_shift": torch.zeros(width)}
        sizes = {"text_attention": 3, "text_attention_out": 1, "text_up": 4, "text_down": 1}
        weights |= {f"{name}_bias": torch.zeros(n * width) for name, n in sizes.items()}
        return {name: weight.requires_grad_() for name, weight in weights.items()}

    def encode(self, weights: "Weights", prepared: np.ndarray) -> "torch.Tensor":
        """Return vectors (N, D) of token ids (N, context), not normalized."""
        import torch
        from torch.nn import functional

        longest = int((prepared != PADDING).sum(axis=1).max(initial=1))
        ids = torch.from_numpy(prepared[:, :longest].astype(np.int64))
        is_token = ids != PADDING
        x = functional.embedding(ids, weights["text_token"]) + weights["text_position"][:longest]
        x = x + _attention(weights, _norm(weights, "text_norm1", x), is_token)
        hidden = functional.gelu(_linear(weights, "text_up", _norm(weights, "text_norm2", x)))
        x = x + _linear(weights, "text_down", hidden)
        states = _norm(weights, "text_norm3", x) * is_token[..., None]
        mean = states.sum(dim=1) / is_token.sum(dim=1, keepdim=True)
        return mean @ weights["text_projection"]

    def project(self, weights: Mapping[str, np.ndarray], texts: Sequence[str]) -> np.ndarray:
        import torch

        given = {name: torch.from_numpy(weight) for name, weight in weights.items()}
        ids = self.prepare(texts)
        with torch.no_grad():
            found = [
                self.encode(given, ids[begin : begin + TEXTS_AT_ONCE]).numpy()
                for begin in range(0, len(ids), TEXTS_AT_ONCE)
            ]
        return np.concatenate(found)


def _attention(weights: "Weights", x: "torch.Tensor", is_token: "torch.Tensor") -> "torch.Tensor":
    """Attend from every position to every token. `x` is (N, L, width), `is_token` (N, L)."""
    from torch.nn import functional

    count, length, width = x.shape
    heads = width // HEAD_WIDTH
    query, key, value = (
        one.view(count, length, heads, HEAD_WIDTH).transpose(1, 2)
        for one in _linear(weights, "text_attention", x).chunk(3, dim=-1)
    )
    mask = is_token[:, None, None, :]
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return _linear(
        weights, "text_attention_out", found.transpose(1, 2).reshape(count, length, width)
    )


def _norm(weights: "Weights", name: str, x: "torch.Tensor") -> "torch.Tensor":
    from torch.nn import functional

    scale, shift = weights[f"{name}_scale"], weights[f"{name}_shift"]
    return functional.layer_norm(x, scale.shape, scale, shift)


def _linear(weights: "Weights", name: str, x: "torch.Tensor") -> "torch.Tensor":
    return x @ weights[name] + weights[f"{name}_bias"]
