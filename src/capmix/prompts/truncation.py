"""Cut texts to a number of tokens of a model."""

import re
from collections.abc import Callable
from typing import Any

Truncate = Callable[[str, int], str]
PIECE = re.compile(r"[^\W_]{1,4}|[^\s]")
CHARACTERS_PER_TOKEN = 32  # a longer text is cut before it is tokenized


def by_pieces(text: str, count: int) -> str:
    """Return the beginning of `text` with at most `count` pieces, for models without a tokenizer.

    A piece is up to four letters or digits of a word, or one other character. English has about as
    many pieces as tokens, or more.
    """
    found = PIECE.finditer(text)
    end = 0
    for number, piece in enumerate(found):
        if number == count:
            return text[:end].rstrip()
        end = piece.end()
    return text


def by_tokens(tokenizer: Any) -> Truncate:
    """Return a function that cuts a text after N tokens of a tokenizer of transformers.

    The result is a beginning of the text. Not for several threads at once.
    """
    if getattr(tokenizer, "is_fast", False):
        return lambda text, count: _by_offsets(tokenizer, text, count)
    return lambda text, count: _by_lengths(tokenizer, text, count)


def _by_offsets(tokenizer: Any, text: str, count: int) -> str:
    text = text[: count * CHARACTERS_PER_TOKEN]
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in found["offset_mapping"]]
    return text if len(ends) <= count else text[: ends[count - 1]].rstrip()


def _by_lengths(tokenizer: Any, text: str, count: int) -> str:
    """Find the longest beginning by bisection: slow tokenizers have no offsets."""
    text = text[: count * CHARACTERS_PER_TOKEN]

    def fits(end: int) -> bool:
        return len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) <= count

    if fits(len(text)):
        return text
    low, high = 0, len(text)  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return text[:low].rstrip()
