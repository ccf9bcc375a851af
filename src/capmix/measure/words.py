"""Split columns of texts into words, and encode n-grams of these words as numbers.

A word is a match of WORD in the lower-cased text: letters and digits, with single apostrophes and
hyphens inside. ASCII texts are split by array operations, all others by the regular expression;
both produce the same words.
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
    """The concatenated words of several texts.

    `values` are all words, dictionary-encoded. The words of text i end before `ends[i]` (int64).
    Text i is row `rows[i]` of the column that was split.
    """

    values: pa.DictionaryArray
    ends: np.ndarray
    rows: np.ndarray

    def counts(self) -> np.ndarray:
        """Return the number of words in each text, int64 (texts,)."""
        return np.diff(self.ends, prepend=0)


def split(texts: pa.StringArray) -> Words:
    """Split a column of texts, without nulls, into words."""
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
    )  # a newline before and after every text ends its first and last word
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
    """Return where in `words.values` the n-grams of `length` words begin; none spans two texts."""
    total = len(words.values)
    inside = np.ones(max(total - length + 1, 0), bool)
    ends = words.ends[words.counts() > 0]
    for back in range(1, length):
        over = ends - back
        inside[over[(over >= 0) & (over < len(inside))]] = False
    return np.flatnonzero(inside)


class Vocabulary:
    """Numbers words from 0 in the order in which they first occur."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Return the number of each word, uint64 (words,)."""
        ids = self.ids
        return np.fromiter((ids.setdefault(word, len(ids)) for word in words), np.uint64)


def bigram_keys(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a unique number for each bigram, uint64 (N,)."""
    keys: np.ndarray = (ids[places] << np.uint64(32)) | ids[places + 1]
    return keys


def trigram_keys(
    ids: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return unique keys of the trigrams that begin at `places`.

    Returns the places and keys, uint64 (N,), of trigrams whose three ids fit in one number, then
    the places and keys, uint64 (M, 2), of the others.
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
    """Return the `most` frequent openings of `words` words, and the number of texts of each."""
    from collections import Counter

    openings: Counter[str] = Counter()
    for text in texts:
        found = WORD.findall(text.lower())
        if len(found) >= words:
            openings[" ".join(found[:words])] += 1
    return sorted(openings.items(), key=lambda one: (-one[1], one[0]))[:most]
