"""The diversity of a population of texts, and how it grows with the population's size.

Exact counts keep only the vocabulary in memory (about 100 bytes per distinct word); n-grams and
texts are written to files. With `sketch`, counts are HyperLogLog estimates in fixed memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.measure.distinct import Distinct
from capmix.measure.sketch import BASE, STANDARD_ERROR, Sketch, hashes, mixed
from capmix.measure.words import Vocabulary, Words, bigram_keys, places_of, split, trigram_keys
from capmix.storage.database import scratch_database

REPEATED = 5  # samples with the same text: titles of batch uploads, captioners' stock phrases
LONGEST = 1024  # words; the maximum in `words_deciles`


@dataclass(frozen=True)
class Split:
    """A batch of texts split into words; `levels` is the level of each text, uint8 (texts,)."""

    texts: pa.StringArray
    levels: np.ndarray
    words: Words


def split_batch(texts: pa.StringArray, levels: np.ndarray) -> Split:
    """Leave out missing and empty texts, and split the others into words."""
    has_text = pc.greater(pc.fill_null(pc.binary_length(texts), 0), 0)
    if not pc.all(has_text).as_py():
        texts, levels = texts.filter(has_text), levels[has_text.to_numpy(zero_copy_only=False)]
    return Split(texts, levels, split(texts))


class Ngrams:
    """Counts distinct words, bigrams and trigrams at nested levels (see Distinct).

    Data that does not stay in memory is written to `folder`. `orders` selects bigrams (2) and
    trigrams (3).
    """

    def __init__(self, folder: Path, levels: int, orders: Sequence[int] = (2, 3)):
        self._levels = levels
        self._orders = orders
        self._vocabulary = Vocabulary()
        self._first_level = np.empty(0, np.uint8)
        self._bigrams = Distinct(folder / "bigrams", levels)
        self._trigrams = Distinct(folder / "trigrams", levels)
        self._wide_trigrams = Distinct(folder / "wide", levels, width=2)

    def add(self, batch: Split) -> None:
        words = batch.words
        ids_of_codes = self._vocabulary.encode(words.values.dictionary.to_pylist())
        ids = ids_of_codes[words.values.indices.to_numpy()]
        levels = batch.levels[words.rows].repeat(words.counts())
        self._note_first(ids, levels)
        if 2 in self._orders:
            places = places_of(words, 2)
            self._bigrams.add(bigram_keys(ids, places), levels[places])
        if 3 in self._orders:
            narrow, keys, wide, pairs = trigram_keys(ids, places_of(words, 3))
            self._trigrams.add(keys, levels[narrow])
            self._wide_trigrams.add(pairs, levels[wide])

    def _note_first(self, ids: np.ndarray, levels: np.ndarray) -> None:
        """Update the lowest level at which each word occurs."""
        grown = np.full(len(self._vocabulary.ids), self._levels - 1, np.uint8)
        grown[: len(self._first_level)] = self._first_level
        for level in range(self._levels - 1):
            here = ids[levels == level]
            grown[here] = np.minimum(grown[here], level)
        self._first_level = grown

    def counts(self) -> dict[str, list[int]]:
        """Return the number of distinct words, bigrams and trigrams at each level."""
        vocabulary = np.bincount(self._first_level, minlength=self._levels)
        wide = self._wide_trigrams.counts()
        return {
            "vocabulary": np.cumsum(vocabulary).tolist(),
            "unique_bigrams": self._bigrams.counts(),
            "unique_trigrams": [a + b for a, b in zip(self._trigrams.counts(), wide, strict=True)],
        }


class Diversity:
    """Counts distinct texts, words and n-grams of a population, exactly, at nested levels.

    Data that does not stay in memory is written to `folder`, which must be empty. The caller
    removes it.
    """

    def __init__(self, folder: Path, levels: int):
        self._levels = levels
        self._totals = _Totals(levels)
        self._ngrams = Ngrams(folder, levels)
        self._texts = scratch_database(folder, threads=2)
        self._texts.execute("create table texts (text varchar, level utinyint)")

    def add(self, batch: Split) -> None:
        self._totals.add(batch)
        self._ngrams.add(batch)
        self._texts.register("batch", pa.table({"text": batch.texts, "level": batch.levels}))
        self._texts.execute("insert into texts select * from batch")
        self._texts.unregister("batch")

    def result(self) -> dict[str, Any]:
        """Return the measures of all texts, and under `curve` the measures at each level."""
        unique_texts, repeated = np.zeros(self._levels, np.int64), 0
        found = self._texts.execute(
            "select level, count(*), sum(n) filter (where n >= $repeated) from "
            "(select min(level) as level, count(*) as n from texts group by text) group by level",
            {"repeated": REPEATED},
        ).fetchall()
        for level, texts, in_repeated in found:
            unique_texts[level] = texts
            repeated += int(in_repeated or 0)
        self._texts.close()
        counts = {"unique_texts": np.cumsum(unique_texts).tolist()} | self._ngrams.counts()
        texts = self._totals.texts
        return self._totals.measures(counts) | {
            "share_repeated_5": repeated / texts if texts else 0.0
        }


class SketchedDiversity:
    """Diversity with estimates of all distinct counts (sketch.py)."""

    def __init__(self, levels: int):
        self._totals = _Totals(levels)
        self._sketches = {
            name: Sketch(levels)
            for name in ("unique_texts", "vocabulary", "unique_bigrams", "unique_trigrams")
        }

    def add(self, batch: Split) -> None:
        words = batch.words
        self._totals.add(batch)
        levels = batch.levels[words.rows].repeat(words.counts())
        self._sketches["unique_texts"].add(hashes(batch.texts), batch.levels)
        keys = hashes(words.values.dictionary)[words.values.indices.to_numpy()]
        self._sketches["vocabulary"].add(keys, levels)
        for name, length in (("unique_bigrams", 2), ("unique_trigrams", 3)):
            places = places_of(words, length)
            ngrams = keys[places]
            for shift in range(1, length):
                ngrams = mixed(ngrams * BASE + keys[places + shift])
            self._sketches[name].add(ngrams, levels[places])

    def merge(self, other: "SketchedDiversity") -> None:
        """Add the counts of another instance."""
        self._totals.merge(other._totals)
        for name, sketch in self._sketches.items():
            sketch.merge(other._sketches[name])

    def result(self) -> dict[str, Any]:
        """Return the same measures as Diversity, with the `standard_error` of distinct counts and
        without `share_repeated_5` (None)."""
        counts = {name: sketch.counts() for name, sketch in self._sketches.items()}
        return self._totals.measures(counts) | {
            "share_repeated_5": None,
            "standard_error": STANDARD_ERROR,
        }


class _Totals:
    """Counts texts, words, characters, bigrams and trigrams at each level."""

    def __init__(self, levels: int):
        self._of_level = np.zeros((5, levels), np.int64)
        self._lengths = np.zeros(LONGEST + 1, np.int64)

    def add(self, batch: Split) -> None:
        counts = batch.words.counts()
        levels = batch.levels[batch.words.rows]
        characters = pc.utf8_length(batch.texts).to_numpy()
        self._of_level[0] += np.bincount(levels, minlength=self._of_level.shape[1])
        for row, values, of in (
            (1, counts, levels),
            (2, characters, batch.levels),
            (3, np.maximum(counts - 1, 0), levels),
            (4, np.maximum(counts - 2, 0), levels),
        ):
            self._of_level[row] += np.bincount(of, values, self._of_level.shape[1]).astype(np.int64)
        self._lengths += np.bincount(np.minimum(counts, LONGEST), minlength=LONGEST + 1)

    def merge(self, other: "_Totals") -> None:
        self._of_level += other._of_level
        self._lengths += other._lengths

    @property
    def texts(self) -> int:
        return int(self._of_level[0].sum())

    def measures(self, counts: dict[str, list[int]]) -> dict[str, Any]:
        texts, words, characters, bigrams, trigrams = np.cumsum(self._of_level, axis=1).tolist()
        curve = {
            "texts": texts,
            **counts,
            "distinct_1": _ratios(counts["vocabulary"], words),
            "distinct_2": _ratios(counts["unique_bigrams"], bigrams),
            "distinct_3": _ratios(counts["unique_trigrams"], trigrams),
        }
        whole = {name: values[-1] for name, values in curve.items()}
        return {
            **whole,
            "mean_words": words[-1] / texts[-1] if texts[-1] else 0.0,
            "mean_characters": characters[-1] / texts[-1] if texts[-1] else 0.0,
            "words_deciles": self._deciles(),
            "curve": curve,
        }

    def _deciles(self) -> list[int]:
        """Return the deciles of the number of words per text, 11 values from minimum to maximum."""
        total = self._lengths.sum()
        if not total:
            return []
        reached = np.cumsum(self._lengths)
        return [int(np.searchsorted(reached, max(total * i / 10, 1))) for i in range(11)]


def _ratios(counts: list[int], totals: list[int]) -> list[float]:
    """Return distinct-n (Li et al. 2016, arXiv 1510.03055): distinct n-grams over all n-grams."""
    return [count / total if total else 0.0 for count, total in zip(counts, totals, strict=True)]
