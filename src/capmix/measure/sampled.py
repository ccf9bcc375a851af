"""Measures on the random sample of a pool: nouns, languages, openings and multiple captions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.measure.nouns import Tagger, load_tagger
from capmix.measure.population import levels_of, read_sample, text_digests
from capmix.measure.settings import MeasureSettings
from capmix.measure.words import WORD, common_openings
from capmix.settings.base import defaults_of
from capmix.storage.draft import Draft
from capmix.storage.layout import MEASURES, captions_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

PART = f"{MEASURES}/sampled"
DEFAULTS = defaults_of(MeasureSettings)
OPENING_WORDS, OPENINGS = 4, 20
SHARDS_OF_CAPTIONS = 50  # shards whose captions of the same image are compared
TEXTS_AT_ONCE = 500


def measure_sampled(
    store: Store,
    digests: Mapping[str, str],
    sources: Sequence[str],
    shards: Sequence[str],
    settings: MeasureSettings,
) -> dict[str, Any]:
    """Return `tagger`, the measures of each source (`sources`) and the `overlap` of each pair.

    Run measure_population first and pass its `digests`. The measures of a source are texts, nouns
    (distinct), noun_share (of all words: the grounding ratio), nouns_a_text, nouns_curve (texts,
    nouns), languages (number of texts by fastText's ISO 639-1 code; None if it is not installed),
    openings, and several (see _several).
    """
    from capmix.mix.functions import fingerprint

    inputs = text_digests(digests, sources)
    tagger_name, tagger = _tagger()
    config: dict[str, Any] = {"sources": list(sources), "tagger": tagger_name}
    config |= settings.model_dump(include={"sample", "seed"})
    config |= fingerprint(["language"])

    def make(_: Draft) -> Marker:
        table = read_sample(store)
        found = {
            source: _measure(table[f"{source}_text"].to_pylist(), source, tagger)
            for source in sources
        }
        for source in sources:
            if source != "raw":
                found[source]["several"] = _several(store, source, shards[:SHARDS_OF_CAPTIONS])
        extra = {"tagger": tagger_name, "sources": found, "overlap": _overlap(table, sources)}
        return Marker(inputs, config, len(table), Counts(ok=len(table)), extra)

    marker, _ = once(store, PART, inputs, config, make, DEFAULTS)
    return marker.extra


def _tagger() -> tuple[str | None, Tagger | None]:
    try:
        return load_tagger()
    except UserError:
        return None, None


def _measure(texts: Sequence[str | None], source: str, tagger: Tagger | None) -> dict[str, Any]:
    found = [text for text in texts if text]
    measures: dict[str, Any] = {
        "texts": len(found),
        "languages": _languages(found),
        "openings": common_openings(found, OPENING_WORDS, OPENINGS),
        "nouns": None,
        "several": None,
    }
    return measures | (_nouns(found, source, tagger) if tagger else {})


def _nouns(texts: Sequence[str], source: str, tagger: Tagger) -> dict[str, Any]:
    """Count nouns. Each distinct text is tagged only once."""
    different = list(dict.fromkeys(texts))
    tagged: dict[str, tuple[int, list[str]]] = {}
    with progress(f"nouns of {source}", "text", len(different)) as bar:
        for start in range(0, len(different), TEXTS_AT_ONCE):
            batch = different[start : start + TEXTS_AT_ONCE]
            tagged.update(zip(batch, tagger(batch), strict=True))
            bar.update(len(batch))
    words = sum(tagged[text][0] for text in texts)
    nouns = sum(len(tagged[text][1]) for text in texts)
    seen: set[str] = set()
    curve, sizes = [], iter(levels_of(max(len(texts), 1)))
    size = next(sizes)
    for number, text in enumerate(texts, start=1):
        seen.update(tagged[text][1])
        if number == size:
            curve.append((number, len(seen)))
            size = next(sizes, 0)
    return {
        "nouns": len(seen),
        "noun_share": nouns / words if words else 0.0,
        "nouns_a_text": nouns / len(texts) if texts else 0.0,
        "nouns_curve": curve,
    }


def _languages(texts: Sequence[str]) -> list[tuple[str, int]] | None:
    from capmix.mix.functions import language_of

    try:
        detect = language_of()
    except UserError:
        return None
    counts = Counter(detect(text) for text in texts)
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _overlap(table: pa.Table, sources: Sequence[str]) -> list[dict[str, Any]]:
    """Return, for each pair of sources, the mean Jaccard index of the word sets of their texts for
    the same sample."""
    words = {source: _word_sets(table[f"{source}_text"].to_pylist()) for source in sources}
    found = []
    for first, second in combinations(sources, 2):
        both = [(a, b) for a, b in zip(words[first], words[second], strict=True) if a and b]
        shares = [len(a & b) / len(a | b) for a, b in both]
        mean = float(np.mean(shares)) if shares else None
        found.append({"first": first, "second": second, "samples": len(both), "words": mean})
    return found


def _word_sets(texts: Sequence[str | None]) -> list[frozenset[str]]:
    return [frozenset(WORD.findall((text or "").lower())) for text in texts]


def _several(store: Store, source: str, shards: Sequence[str]) -> dict[str, Any] | None:
    """Return the diversity of the captions of one image, averaged over images; None if the source
    has no image with several captions.

    `captions`: per image. `unique`: the share of distinct captions. `div_1` and `div_2`: distinct
    words and bigrams over the number of words (Shetty et al. 2017, arXiv 1703.10476).
    """
    of_image: list[list[str]] = []
    for shard in shards:
        table = store.read_table(f"{captions_folder(source)}/{shard}.parquet", ["uid", "text"])
        by_uid: dict[str, list[str]] = {}
        for uid, text in zip(table["uid"].to_pylist(), table["text"].to_pylist(), strict=True):
            if uid and text:
                by_uid.setdefault(uid, []).append(text)
        of_image += by_uid.values()
    of_image = [texts for texts in of_image if len(texts) > 1]
    if not of_image:
        return None
    values = []
    for texts in of_image:
        words = [WORD.findall(text.lower()) for text in texts]
        total = sum(map(len, words)) or 1
        unigrams = {word for one in words for word in one}
        bigrams = {pair for one in words for pair in pairwise(one)}
        unique = len(set(texts)) / len(texts)
        values.append((len(texts), unique, len(unigrams) / total, len(bigrams) / total))
    means = np.mean(values, axis=0).tolist()
    return {"images": len(of_image)} | dict(
        zip(("captions", "unique", "div_1", "div_2"), means, strict=True)
    )
