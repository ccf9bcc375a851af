"""Texts to words, a whole column at once, and the n-grams of those words as numbers.

A word is what WORD finds in the lower-cased text: letters and digits, with single apostrophes and
hyphens inside. Texts of ASCII alone are split by array operations, the others by the expression
itself; both give the same words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NARROW_BITS = 21  # three ids below 2^21 fit one 64-bit number
LETTERS, DIGITS, JOINERS = (ord("a"), 26), (ord("0"), 10), b"'-"


@dataclass(frozen=True)
class Words:
    """The words of some texts, one text's after the other's.

    `values` has every word as a dictionary (codes, and the different words); those of the i-th text
    here end before `ends[i]` (int64). The i-th text here is number `rows[i]` of the column that was
    split.
    """

    values: pa.DictionaryArray
    ends: np.ndarray
    rows: np.ndarray

    def counts(self) -> np.ndarray:
        """Words in each text, int64 (texts,)."""
        return np.diff(self.ends, prepend=0)


def split(texts: pa.StringArray) -> Words:
    """The words of a column of texts that has no nulls."""
    ascii_only = pc.string_is_ascii(texts).to_numpy(zero_copy_only=False)
    plain, other = np.flatnonzero(ascii_only), np.flatnonzero(~ascii_only)
    if not len(other):
        values, ends = _split_ascii(texts)
        return Words(values.dictionary_encode(), ends, plain)
    found = [WORD.findall(text.lower()) for text in texts.take(pa.array(other)).to_pylist()]
    of_other = pa.array([word for words in found for word in words], pa.string())
    other_ends = np.cumsum([len(words) for words in found], dtype=np.int64)
    values, ends = _split_ascii(texts.take(pa.array(plain)))
    return Words(
        pa.concat_arrays([values, of_other]).dictionary_encode(),
        np.concatenate([ends, len(values) + other_ends]),
        np.concatenate([plain, other]),
    )


def _split_ascii(texts: pa.StringArray) -> tuple[pa.StringArray, np.ndarray]:
    whole = pa.ListArray.from_arrays(
        pa.array([0, len(texts)], pa.int32()), pc.ascii_lower(texts)
    )  # a line break before and after every text, so that every word has an end
    joined = np.frombuffer(pc.binary_join(whole, "\n")[0].as_buffer(), np.uint8)
    data = np.pad(joined, 1, constant_values=ord("\n"))
    is_word = np.zeros(len(data), bool)
    for first, count in (LETTERS, DIGITS):
        is_word |= data - np.uint8(first) < count  # uint8 wraps around below `first`
    for joiner in JOINERS:
        places = np.flatnonzero(data == joiner)
        is_joined = is_word[places - 1] & is_word[places + 1]
        is_word[places[is_joined]] = True
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    begins, lengths = edges[::2], edges[1::2] - edges[::2]
    offsets = np.zeros(len(begins) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    letters = data[is_word]
    values = pa.StringArray.from_buffers(len(begins), pa.py_buffer(offsets), pa.py_buffer(letters))
    text_ends = np.cumsum(pc.binary_length(texts).to_numpy().astype(np.int64) + 1)
    return values, np.searchsorted(begins, text_ends).astype(np.int64)


def places_of(words: Words, length: int) -> np.ndarray:
    """Where in `words.values` n-grams of `length` words begin that lie within one text."""
    total = len(words.values)
    inside = np.ones(max(total - length + 1, 0), bool)
    ends = words.ends[words.counts() > 0]
    for back in range(1, length):
        over = ends - back
        inside[over[(over >= 0) & (over < len(inside))]] = False
    return np.flatnonzero(inside)


class Vocabulary:
    """Numbers words in the order in which they are met, from 0."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """The number of each word, uint64 (words,)."""
        ids = self.ids
        return np.fromiter((ids.setdefault(word, len(ids)) for word in words), np.uint64)


def bigram_keys(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """One number for each pair of words, uint64 (N,); equal for equal pairs alone."""
    keys: np.ndarray = (ids[places] << np.uint64(32)) | ids[places + 1]
    return keys


def trigram_keys(
    ids: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers for the trigrams that begin at `places`; equal for equal trigrams alone.

    Returns the places of those whose three ids fit one number with these numbers, uint64 (N,), and
    the places of the others with pairs, uint64 (M, 2).
    """
    first, second, third = (ids[places + shift] for shift in range(3))
    is_narrow = (first | second | third) < (1 << NARROW_BITS)
    bits = np.uint64(NARROW_BITS)
    narrow = (((first << bits) | second) << bits) | third
    if is_narrow.all():
        return places, narrow, places[:0], np.empty((0, 2), np.uint64)
    wide = np.stack([(first << np.uint64(32)) | second, third], axis=1)
    return places[is_narrow], narrow[is_narrow], places[~is_narrow], wide[~is_narrow]


def common_openings(texts: Sequence[str], words: int, most: int) -> list[tuple[str, int]]:
    """The openings of so many words that most texts share, with how many texts each opens."""
    from collections import Counter

    openings: Counter[str] = Counter()
    for text in texts:
        found = WORD.findall(text.lower())
        if len(found) >= words:
            openings[" ".join(found[:words])] += 1
    return sorted(openings.items(), key=lambda one: (-one[1], one[0]))[:most]
