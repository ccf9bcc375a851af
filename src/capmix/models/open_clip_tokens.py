"""Tokenize texts as open_clip's tokenizers do, once per text, and in Rust where that is exact.

open_clip's SimpleTokenizer cleans a text (with ftfy, among others), splits it into words with a
regular expression, and merges the bytes of each word in Python. Here, the regular expression is the
same object, ftfy is skipped only for texts that it returns unchanged, and the words are merged by
the package `tokenizers`, built from the vocabulary and the merges of the given tokenizer.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from capmix.models.registry import require
from capmix.models.tokens import Tokens, encode_truncated

SPECIAL = ["<start_of_text>", "<end_of_text>"]
WORD_END = "</w>"
CLIPS_RESERVED = 3  # positions that open_clip's mode "clips" keeps for special tokens
Clean = Callable[[str], str]


def open_clip_tokenizer(tokenizer: Any) -> Callable[[Sequence[str]], Tokens]:
    """Return a thread-safe function that tokenizes texts like a tokenizer of open_clip.

    The inputs of its Tokens are int64 (context_length,), as open_clip pads them. Raises UserError
    if the package `tokenizers` is not installed.
    """
    require(["tokenizers"], "open_clip", "open_clip")
    return BpeTokenizer(tokenizer) if is_plain_bpe(tokenizer) else OwnTokenizer(tokenizer)


class BpeTokenizer:
    """A SimpleTokenizer of open_clip with its merges in Rust. Its memory is bounded."""

    def __init__(self, tokenizer: Any):
        from tokenizers import Tokenizer, models, pre_tokenizers

        model = models.BPE(
            vocab=tokenizer.encoder,
            merges=_pairs(tokenizer.bpe_ranks),
            end_of_word_suffix=WORD_END,
        )
        self._merge = Tokenizer(model)
        self._merge.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        # Words are homogeneous, so that nothing but the word itself contains a special token.
        self._merge.add_special_tokens(SPECIAL)
        self._clean, self._words = _cleaner(tokenizer.clean_fn), tokenizer.pat.findall
        letters = {byte: letter for byte, letter in tokenizer.byte_encoder.items() if byte != 32}
        self._letters = str.maketrans({chr(byte): letter for byte, letter in letters.items()})
        self._start, self._end = tokenizer.sot_token_id, tokenizer.eot_token_id
        self._reduce, self.context_length = tokenizer.reduction_fn, int(tokenizer.context_length)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize N texts. Raises UnicodeEncodeError for half a surrogate pair left by cleaning.

        The model's reduction mask, if it has one, chooses the tokens of texts that are too long.
        """
        room = self.context_length - 2
        if self._reduce is not None:
            return self._reduced(texts)
        ids = self.encode(texts, room + 1)
        return Tokens(list(self._padded(ids, room)), [len(one) > room for one in ids])

    def encode(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Return the ids of each text like `SimpleTokenizer.encode`.

        With `most`, texts of more than `most` words may end after `most` words, each of which has
        at least one token.
        """
        joined = [self._joined(text, most) for text in texts]
        return [found.ids for found in self._merge.encode_batch_fast(joined)]

    def _joined(self, text: str, most: int | None) -> str:
        """Return the words of a text, with a letter for each byte, separated by spaces."""
        words = " ".join(self._words(self._clean(text))[:most])
        if words.isascii() and words.isprintable():
            return words  # these bytes stand for themselves
        return words.encode().decode("latin-1").translate(self._letters)

    def _padded(self, ids: Sequence[Sequence[int]], room: int) -> np.ndarray:
        """Return int64 (N, context_length): start, up to `room` ids, end and zeros."""
        lengths = np.fromiter((min(len(one), room) for one in ids), np.int64, len(ids))
        flat = chain.from_iterable(one[:room] for one in ids)
        rows = np.zeros((len(ids), self.context_length), np.int64)
        rows[:, 0] = self._start
        is_used = np.arange(room) < lengths[:, None]
        rows[:, 1:-1][is_used] = np.fromiter(flat, np.int64, int(lengths.sum()))
        rows[np.arange(len(ids)), lengths + 1] = self._end
        return rows

    def _reduced(self, texts: Sequence[str]) -> Tokens:
        known = dict(zip(texts, self.encode(texts), strict=True))

        def encode(text: str) -> list[int]:  # "syntax" asks for texts of chosen words
            return known[text] if text in known else self.encode([text])[0]

        rows = self._reduce(
            list(texts),
            context_length=self.context_length,
            sot_token_id=self._start,
            eot_token_id=self._end,
            encode_fn=encode,
        )
        truncated = [len(known[text]) + 2 > self.context_length for text in texts]
        return Tokens(list(rows.numpy()), truncated)


class OwnTokenizer:
    """Any other tokenizer of open_clip: calls it once, and observes which texts it truncates."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = copy.copy(tokenizer)
        if hasattr(tokenizer, "clean_fn"):
            self._tokenizer.clean_fn = _cleaner(tokenizer.clean_fn)
        # A fast tokenizer of transformers keeps its truncation settings in itself.
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenize N texts."""
        observed = copy.copy(self._tokenizer)
        with self._lock:
            if getattr(observed, "tokenizer", None) is not None:
                inner = _ObservedInner(observed.tokenizer, int(observed.context_length))
                observed.tokenizer = inner
                return Tokens(list(observed(list(texts)).numpy()), inner.truncated)
            lengths: list[int] = []
            observed.encode = _observed_encode(observed.encode, lengths)
            # A SimpleTokenizer keeps all words that it has seen: forget them after the call.
            special = (observed.decoder[i] for i in observed.all_special_ids)
            observed.cache = {token: token for token in special}
            rows = observed(list(texts)).numpy()
        return Tokens(list(rows), [length + 2 > observed.context_length for length in lengths])


class _ObservedInner:
    """The tokenizer of transformers inside one of open_clip; notes which texts are truncated."""

    def __init__(self, inner: Any, context_length: int):
        self._inner, self._context_length = inner, context_length
        self.truncated: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, texts: list[str], **options: Any) -> Any:
        from transformers import BatchEncoding

        if options.get("truncation"):
            length = options.pop("max_length")
            rows, self.truncated = encode_truncated(self._inner, texts, length, **options)
            return BatchEncoding(rows)
        encoded = self._inner(texts, **options)
        room = self._context_length - CLIPS_RESERVED
        self.truncated = [len(ids) > room for ids in encoded["input_ids"]]
        return encoded


def _observed_encode(
    encode: Callable[[str], list[int]], lengths: list[int]
) -> Callable[[str], list[int]]:
    def observed(text: str) -> list[int]:
        ids = encode(text)
        lengths.append(len(ids))
        return ids

    return observed


def is_plain_bpe(tokenizer: Any) -> bool:
    """Return whether `tokenizers` merges the words of this tokenizer to the same tokens."""
    from open_clip.tokenizer import SimpleTokenizer

    return (
        type(tokenizer) is SimpleTokenizer
        and tokenizer.context_length is not None
        and tokenizer.context_length >= 2
        and [tokenizer.decoder[i] for i in tokenizer.all_special_ids] == SPECIAL
        and all(len(pair) in (0, 2) for pair in tokenizer.bpe_ranks)
        and _is_ordered(_pairs(tokenizer.bpe_ranks))
    )


def _pairs(merges: Iterable[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the merges without empty ones: a file's last line is empty if it ends in a newline."""
    return [(pair[0], pair[1]) for pair in merges if pair]


def _is_ordered(merges: Iterable[tuple[str, str]]) -> bool:
    """Return whether each token is made by one merge, which comes after those of its two halves.

    Then all ways of applying the merges by rank give the same tokens: open_clip replaces all
    occurrences of a pair at once, `tokenizers` one at a time.
    """
    seen: set[str] = set()
    halves: set[str] = set()
    for first, second in merges:
        halves |= {first, second}
        made = first + second
        if made in seen or made in halves:
            return False
        seen.add(made)
    return True


def _cleaner(clean: Clean) -> Clean:
    """Return a function equal to `clean`, a cleaning function of open_clip.

    It calls ftfy and html.unescape only for texts that these may change.
    """
    from open_clip.tokenizer import canonicalize_text, get_clean_fn

    after_repair: dict[Clean, Clean] = {
        get_clean_fn("lower"): lambda text: " ".join(text.split()).lower(),
        get_clean_fn("whitespace"): lambda text: " ".join(text.split()),
        get_clean_fn("canonicalize"): canonicalize_text,
    }
    rest = after_repair.get(clean)
    if rest is None:
        return clean
    return lambda text: rest(text) if needs_no_repair(text) else clean(text)


def needs_no_repair(text: str) -> bool:
    """Return whether ftfy.fix_text and html.unescape are known to return `text` unchanged."""
    return text.isascii() and text.isprintable() and "&" not in text
