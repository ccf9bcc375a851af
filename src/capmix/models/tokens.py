"""Tokenized texts, and text encoders that tokenize ahead of their model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Tokens:
    """N texts as a model reads them.

    `inputs` are what `encode_tokens` takes, one per text. `truncated` is true for a text whose end
    the model does not read.
    """

    inputs: Sequence[Any]
    truncated: Sequence[bool]


class TextEncoder(Protocol):
    """A model that embeds a text as one vector."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Prepare texts for the model, without its device.

        Runs in a thread, ahead of `encode_tokens`. The result for a text may not depend on the
        other texts.
        """
        ...

    def encode_tokens(self, inputs: Sequence[Any]) -> np.ndarray:
        """Return unit vectors, float32 (N, D), of N inputs of `tokenize`."""
        ...


def encode_texts(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """Return unit vectors, float32 (N, D), of N >= 1 texts. Equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    vectors = encoder.encode_tokens(encoder.tokenize(unique).inputs)
    position = {text: row for row, text in enumerate(unique)}
    found: np.ndarray = vectors[[position[text] for text in texts]]
    return found


def encode_truncated(
    tokenizer: Any, texts: Sequence[str], length: int, **options: Any
) -> tuple[dict[str, Any], list[bool]]:
    """Run a tokenizer of transformers once, with truncation to `length` tokens.

    Returns its outputs by name, one row per text, and whether each text was truncated. `options`
    are passed on to the tokenizer.
    """
    options = {"truncation": True, "max_length": length, **options}
    if not tokenizer.is_fast:  # reports what it cut in no usable form
        rows = tokenizer(list(texts)).input_ids
        return dict(tokenizer(list(texts), **options)), [len(ids) > length for ids in rows]
    # The rest of a truncated text is returned as further rows.
    outputs = dict(tokenizer(list(texts), return_overflowing_tokens=True, **options))
    sample = np.asarray(outputs.pop("overflow_to_sample_mapping"))
    _, first, count = np.unique(sample, return_index=True, return_counts=True)
    kept = {
        name: rows[first] if hasattr(rows, "shape") else [rows[i] for i in first]
        for name, rows in outputs.items()
    }
    return kept, (count > 1).tolist()
