"""Agreement of a text with generated captions of its image: SIEVE's alignment score.

arXiv 2310.02110: phrases that name a medium are removed from both texts, whatever their case. With
the cosine similarity of sentence embeddings,

    value = max over k of cos(sentence(text), sentence(caption_k)),

and 0 if the caption with the greatest similarity (the first of several) is empty.

Columns of `columns/<name>/<shard>.parquet` in addition to the status: `value` (float32) and `k`
(number of that caption). A sample without a text or without a caption is dropped.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.annotate.settings import AnnotateSettings
from capmix.engine.batches import Batches, SampleError, batched
from capmix.engine.stage import PartWriter, Stage
from capmix.pool import Shard
from capmix.sentences.encoder import EncoderSettings, SentenceEncoder
from capmix.sentences.encoders import make_encoder
from capmix.storage.first_texts import first_texts
from capmix.storage.layout import annotation_folder, texts_folder
from capmix.storage.rows import DROPPED, FAILED, OK, Row, column_names, rows_of, table_of
from capmix.storage.store import Store

PHRASES = (
    "an image of", "a photo of", "stock photo", "photo stock", "a photo", "an image", "image",
    "photo",
)  # fmt: skip
FIELDS = [("value", pa.float32()), ("k", pa.int32())]
ROWS_AT_ONCE = 16_384  # whose vectors are in memory
Vectors = Mapping[str, np.ndarray | SampleError]
Captions = Sequence[tuple[int, str]]  # number and text, without the phrases
Pair = tuple[str, Captions]  # a text, without the phrases, and the captions of its image


def without_phrases(text: str, phrases: Sequence[str] = PHRASES) -> str:
    """Return the text without each of the phrases, in their order, whatever their case.

    As in SIEVE, a phrase is also removed inside a word: `photography` becomes `graphy`.
    """
    for phrase in phrases:
        text = re.sub(re.escape(phrase), "", text, flags=re.IGNORECASE)
    return text.strip()


def encoder_settings(settings: AnnotateSettings) -> EncoderSettings:
    """Return how the annotation's sentence encoder is loaded; `mini` is the default."""
    return EncoderSettings(
        settings.model or "mini",
        settings.revision,
        settings.prefix,
        settings.device,
        settings.encode_batch,
    )


def agreement_stages(store: Store, name: str, settings: AnnotateSettings) -> list[Stage]:
    """Return the stage that writes the annotation `name`. Loads the sentence encoder."""
    return [agreement_stage(store, name, settings, make_encoder(encoder_settings(settings)))]


def agreement_stage(
    store: Store, name: str, settings: AnnotateSettings, encoder: SentenceEncoder
) -> Stage:
    """Return the stage that compares each text with the captions of its image."""
    assert settings.captions is not None
    own, other = texts_folder(settings.source), texts_folder(settings.captions)
    phrases = PHRASES if settings.phrases is None else tuple(settings.phrases)
    batches = Batches()

    def encode(texts: Sequence[str]) -> list[np.ndarray | SampleError]:
        return list(encoder.encode_tokens(encoder.tokenize(texts).inputs))

    def encoded(texts: Iterable[str], out: PartWriter) -> dict[str, np.ndarray | SampleError]:
        vectors: dict[str, np.ndarray | SampleError] = {}
        # A batch of texts of similar length has little padding.
        for some in batched(sorted(texts, key=len), settings.encode_batch):
            with out.busy.working(0):
                vectors |= zip(some, batches.run(encode, some), strict=True)
        return vectors

    def inputs(shard: Shard) -> dict[str, str]:
        return {folder: store.fingerprint(f"{folder}/{shard.name}") for folder in (own, other)}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows, texts = _texts(store, f"{own}/{shard.name}", phrases)
        captions = _captions(store, f"{other}/{shard.name}", phrases)
        pairs = [
            (text, captions[row.uid or ""]) if row.status == OK and text is not None else None
            for row, text in zip(rows, texts, strict=True)
        ]
        found: list[Row] = []
        for some in batched(zip(rows, pairs, strict=True), ROWS_AT_ONCE):
            vectors = encoded(_distinct(pair for _, pair in some), out)
            found += [_row(row, pair, vectors) for row, pair in some]
        for row in found:
            out.count(row.status, row.reason)
        out.write_table(table_of(found, FIELDS))

    config: dict[str, Any] = {
        "method": settings.method,
        "source": settings.source,
        "captions": settings.captions,
    }
    config |= {"phrases": list(phrases), "encoder": encoder.settings}
    # Readers compare `values` to detect parts of two runs, which have other settings here.
    config["values"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]
    return Stage(
        f"annotate {name}",
        annotation_folder(name),
        config,
        inputs,
        run_shard,
        (own, other),
        columns=column_names(FIELDS),
        provenance=getattr(encoder, "provenance", {}),
    )


def _texts(store: Store, part: str, phrases: Sequence[str]) -> tuple[list[Row], list[str | None]]:
    """Return a row for each sample, and its first text without the phrases; None for no text."""
    table = first_texts(store, part)
    texts = [
        without_phrases(text, phrases) if text and text.strip() else None
        for text in table["text"].to_pylist()
    ]
    return rows_of(table), texts


def _captions(
    store: Store, part: str, phrases: Sequence[str]
) -> defaultdict[str, list[tuple[int, str]]]:
    """Return the captions of each uid, without the phrases."""
    table = store.read_table(f"{part}.parquet")
    uids, texts = table["uid"].to_pylist(), table["text"].to_pylist()
    numbers = table["k"].to_pylist() if "k" in table.column_names else [0] * len(texts)
    found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    for uid, k, text in zip(uids, numbers, texts, strict=True):
        if uid is not None and text is not None:
            found[uid].append((k or 0, without_phrases(text, phrases)))
    return found


def _distinct(pairs: Iterable[Pair | None]) -> Iterable[str]:
    """Return the distinct texts of the pairs that are compared, in their order."""
    compared = [pair for pair in pairs if pair is not None and pair[1]]
    texts = ((text, *(one for _, one in captions)) for text, captions in compared)
    return dict.fromkeys(chain.from_iterable(texts))


def _row(row: Row, pair: Pair | None, vectors: Vectors) -> Row:
    """Return the row of a sample, given its text and captions; None if it has no text."""
    if row.status != OK:
        return row
    if pair is None:
        return Row(row.uid, row.key, DROPPED, "no_text", "no text to compare")
    text, captions = pair
    if not captions:
        return Row(row.uid, row.key, DROPPED, "no_caption", "no caption to compare with")
    found: list[np.ndarray] = []
    for one in (text, *(caption for _, caption in captions)):
        vector = vectors[one]
        if isinstance(vector, SampleError):
            return Row(row.uid, row.key, FAILED, vector.reason, str(vector))
        found.append(vector)
    similarities = np.stack(found[1:]).astype(np.float64) @ found[0]
    if np.isnan(similarities).any():
        return Row(row.uid, row.key, FAILED, "nan_score", "the sentence encoder returned NaN")
    best = int(similarities.argmax())
    k, caption = captions[best]
    return Row(row.uid, row.key, values=(float(similarities[best]) if caption else 0.0, k))
