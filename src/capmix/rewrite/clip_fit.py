"""Count the tokens of texts as CLIP does, and cut texts to its context."""

import re
from collections.abc import Sequence

WORD_END = re.compile(r"(?<=\S)(?=\s|$)")


class ClipFit:
    """Makes texts fit `tokens` tokens of CLIP, including the start and the end token.

    Needs open_clip, whose tokenizer CLIP's text towers share.
    """

    def __init__(self, tokens: int):
        from open_clip.tokenizer import SimpleTokenizer

        from capmix.models.open_clip_tokens import BpeTokenizer

        self._tokens, self._tokenizer = tokens, BpeTokenizer(SimpleTokenizer())

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, including the start and the end token."""
        return len(self._tokenizer.encode([text])[0]) + 2

    def cut(self, text: str) -> str:
        """Return the text, or as many of its first words as fit (characters, if no word fits)."""
        if self.count(text) <= self._tokens:
            return text
        words = self._longest(text, [found.start() for found in WORD_END.finditer(text)])
        return words or self._longest(text, range(1, len(text) + 1))

    def _longest(self, text: str, ends: Sequence[int]) -> str:
        """Return the longest beginning that fits, of those with the given ends."""
        low, high = 0, len(ends)  # the first `low` fit
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.count(text[: ends[middle - 1]]) <= self._tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        return text[: ends[low - 1]] if low else ""
