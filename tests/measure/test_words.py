import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from capmix.measure.words import (
    Vocabulary,
    Words,
    bigram_keys,
    common_openings,
    places_of,
    split,
    trigram_keys,
)

PLAIN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
TEXTS = st.lists(st.text(st.sampled_from("abZ09 -'’_\n.éß日İ\t\x00"), max_size=20) | st.text())


def words_of(words: Words, texts: list[str]) -> list[list[str]]:
    """Return the words of each text, in the order of the texts."""
    values = words.values.to_pylist()
    found: list[list[str]] = [[] for _ in texts]
    begin = 0
    for row, end in zip(words.rows, words.ends, strict=True):
        found[row] = values[begin:end]
        begin = end
    return found


@given(TEXTS)
def test_words_are_those_of_the_expression(texts: list[str]) -> None:
    assert words_of(split(pa.array(texts, pa.string())), texts) == [
        PLAIN.findall(text.lower()) for text in texts
    ]


@given(TEXTS)
def test_keys_are_equal_for_equal_ngrams_alone(texts: list[str]) -> None:
    """There are as many distinct keys as distinct tuples of words."""
    words = split(pa.array(texts, pa.string()))
    vocabulary = Vocabulary()
    ids = vocabulary.encode(words.values.dictionary.to_pylist())[words.values.indices.to_numpy()]
    split_texts = [PLAIN.findall(text.lower()) for text in texts]
    pairs = {p for w in split_texts for p in pairwise(w)}
    triples = {t for w in split_texts for t in zip(w, w[1:], w[2:], strict=False)}
    assert len(set(bigram_keys(ids, places_of(words, 2)).tolist())) == len(pairs)
    _, narrow, _, _ = trigram_keys(ids, places_of(words, 3))
    assert len(set(narrow.tolist())) == len(triples)


def test_trigrams_of_a_large_vocabulary_are_pairs() -> None:
    """Ids of 2^21 and above do not fit in a third of 64 bits."""
    ids = np.array([1, 2, 3, 2**21, 5], np.uint64)
    places, narrow, wide_places, wide = trigram_keys(ids, np.arange(3))
    assert places.tolist() == [0]
    assert narrow.tolist() == [(1 << 42) + (2 << 21) + 3]
    assert wide_places.tolist() == [1, 2]
    assert wide.tolist() == [[(2 << 32) + 3, 2**21], [(3 << 32) + 2**21, 5]]


def test_openings_are_counted_by_text() -> None:
    texts = ["A close up of a dog", "a close-up of a cat", "A CLOSE up of it", "a dog"]
    assert common_openings(texts, 4, 2) == [("a close up of", 2), ("a close-up of a", 1)]
