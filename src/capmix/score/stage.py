"""Score a source's texts: write `scores/<scorer>/<source>/<shard>.parquet`.

Columns in addition to the status: `k`, `score` (cosine similarity of image and text, float32) and
`truncated` (true if the text is longer than the scorer's context).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.batches import BATCH_TIMEOUT, Batches, SampleError, batched
from capmix.engine.busy import Busy
from capmix.engine.prefetch import prefetched
from capmix.engine.read_ahead import ReadAhead
from capmix.engine.redo import OF_FILES
from capmix.engine.stage import PartWriter, Stage
from capmix.models.image_pass import PreparedImages, embed_shard, read_embeddings
from capmix.models.index import pool_inputs
from capmix.models.selected import LargerParts, SelectedSamples, not_selected
from capmix.pool import ImagePool, Shard
from capmix.score.array import write_array
from capmix.score.scorer import Scorer
from capmix.score.settings import ScoreSettings
from capmix.settings.base import defaults_of
from capmix.storage.layout import SAMPLES, embeddings_folder, scores_folder, texts_folder
from capmix.storage.rows import (
    DROPPED,
    FAILED,
    OK,
    Row,
    column_names,
    rows_of,
    table_of,
    with_columns,
)
from capmix.storage.store import Store

FIELDS = [("k", pa.int32()), ("score", pa.float32()), ("truncated", pa.bool_())]
TEXTS_AT_ONCE = 2048
DEFAULTS = defaults_of(ScoreSettings)
Embedded = tuple[list[Row], np.ndarray]
Tokenized = tuple[Any, bool]  # what the scorer encodes, and whether the text was truncated
Words = tuple[np.ndarray, bool]  # the vector, and whether the text was truncated


class ImagePass:
    """Image embeddings of one shard at a time, shared by all sources: each image is decoded once.

    With `selected`, embeds only these samples.
    """

    def __init__(
        self,
        pool: ImagePool,
        scorer: Scorer,
        batch_timeout: float = BATCH_TIMEOUT,
        selected: SelectedSamples | None = None,
    ):
        self._images, self._selected = PreparedImages(pool, scorer.encoder), selected
        self._batches = Batches(batch_timeout)
        self._last: tuple[str, Embedded] | None = None

    def __call__(self, shard: Shard, busy: Busy) -> Embedded:
        """Return the status rows and float32 embeddings (ok rows, dimensions) of a shard."""
        if self._last is None or self._last[0] != shard.name:
            chosen = self._selected.of(shard.name) if self._selected else None
            keys = None if chosen is None else frozenset(chosen.values())
            found = embed_shard(self._images, shard, self._batches, busy, keys)
            self._last = shard.name, found
        return self._last[1]

    @property
    def ahead(self) -> ReadAhead[Shard, Any, Any] | None:
        """The reader of whole shards; None if only some samples are read."""
        return None if self._selected else self._images.whole


def saved_score_stage(
    store: Store,
    scorer: Scorer,
    source: str,
    batch_timeout: float = BATCH_TIMEOUT,
    selected: SelectedSamples | None = None,
) -> Stage:
    """Return a scoring stage that reads embeddings from the work directory."""
    folder = embeddings_folder(scorer.encoder.name)

    def inputs(shard: Shard) -> dict[str, str]:
        return {folder: store.fingerprint(f"{folder}/{shard.name}")}

    def embedded(shard: Shard, _: Busy) -> Embedded:
        return read_embeddings(store, f"{folder}/{shard.name}")

    reads = (folder,)
    return score_stage(store, scorer, source, embedded, inputs, reads, batch_timeout, selected)


def fresh_score_stage(
    store: Store,
    scorer: Scorer,
    source: str,
    images: ImagePass,
    batch_timeout: float = BATCH_TIMEOUT,
    selected: SelectedSamples | None = None,
) -> Stage:
    """Return a scoring stage that embeds the pool's images and does not save the embeddings."""
    stage = score_stage(store, scorer, source, images, pool_inputs, (), batch_timeout, selected)
    return replace(stage, image_pass=images, ahead=images.ahead)


def score_stage(
    store: Store,
    scorer: Scorer,
    source: str,
    embedded: Callable[[Shard, Busy], Embedded],
    image_inputs: Callable[[Shard], dict[str, str]],
    image_folders: tuple[str, ...],
    batch_timeout: float,
    selected: SelectedSamples | None = None,
) -> Stage:
    """Return the stage in which `scorer` compares each text of `source` with its image.

    With `selected`, other samples are dropped.
    """
    texts = texts_folder(source)
    batches = Batches(batch_timeout)
    ahead = Batches(batch_timeout)  # of the thread that tokenizes

    def tokenize(some: Sequence[str]) -> list[Tokenized]:
        tokens = scorer.tokenize(some)
        return list(zip(tokens.inputs, tokens.truncated, strict=True))

    def inputs(shard: Shard) -> dict[str, str]:
        known = image_inputs(shard) | {texts: store.fingerprint(f"{texts}/{shard.name}")}
        return known | (selected.selection.inputs(shard.name) if selected else {})

    def run_shard(shard: Shard, out: PartWriter) -> None:
        samples, embeddings = embedded(shard, out.busy)
        seen = [row for row in samples if row.status == OK]
        position = {row.uid: i for i, row in enumerate(seen)}
        images = {row.uid: row for row in seen + [row for row in samples if row.status != OK]}
        unread = next((row for row in samples if row.reason in OF_FILES), None)
        table = store.read_table(f"{texts}/{shard.name}.parquet")
        captions = table.column("text").to_pylist()
        numbers = table.column("k").to_pylist() if "k" in table.column_names else [0] * len(table)
        chosen = selected.of(shard.name) if selected else None
        rows = [
            _unscored(row, text, images.get(row.uid), unread)
            if chosen is None or row.uid in chosen or row.status != OK
            else not_selected(row.uid, row.key)
            for row, text in zip(rows_of(table), captions, strict=True)
        ]
        todo = [i for i, row in enumerate(rows) if row.status == OK]
        tokenized = prefetched(
            batched(todo, TEXTS_AT_ONCE),
            lambda some: ahead.run(tokenize, list(dict.fromkeys(captions[i] for i in some))),
            workers=1,
            ahead=1,
        )
        for some, finished in tokenized:
            pictures = scorer.project_images(embeddings[[position[rows[i].uid] for i in some]])
            with out.busy.working(0):
                words = _encoded(scorer, batches, finished.result())
            of_text = dict(zip(dict.fromkeys(captions[i] for i in some), words, strict=True))
            for i, picture in zip(some, pictures, strict=True):
                rows[i] = _scored(rows[i], numbers[i], picture, of_text[captions[i]])
        for row in rows:
            out.count(row.status, row.reason)
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **scorer.settings}
    name = f"score {source} by {scorer.name}"
    reads = (*image_folders, texts)
    folder = scores_folder(scorer.name, source)
    return Stage(
        name,
        folder,
        config,
        inputs,
        run_shard,
        reads,
        of_samples=texts == SAMPLES,
        defaults=DEFAULTS,
        columns=column_names(FIELDS),
        upgrade=with_columns(FIELDS),
        provenance=getattr(scorer, "provenance", {}),
        after=lambda shard: write_array(store, folder, shard.name),
        reuse=LargerParts(selected, folder, config, DEFAULTS, inputs) if selected else None,
    )


def _unscored(row: Row, text: str | None, image: Row | None, unread: Row | None) -> Row:
    """Return the row of a text, given its image's. `unread`: why the image pass ended early."""
    if row.status != OK:
        return row
    if image is None and unread is not None:
        return Row(row.uid, row.key, FAILED, unread.reason, unread.detail)
    if image is None:
        return Row(
            row.uid, row.key, FAILED, "no_embedding", "the image pass did not embed this sample"
        )
    if image.status != OK:
        return image
    if not text or not text.strip():
        return Row(row.uid, row.key, DROPPED, "no_text", "no text to score")
    return row


def _encoded(
    scorer: Scorer, batches: Batches, tokenized: Sequence[Tokenized | SampleError]
) -> list[Words | SampleError]:
    """Return the vector of each tokenized text, and whether the text was truncated."""
    good = [one for one in tokenized if not isinstance(one, SampleError)]
    vectors = iter(
        batches.run(lambda some: list(scorer.encode_tokens(some)), [inputs for inputs, _ in good])
    )
    found: list[Words | SampleError] = []
    for one in tokenized:
        if isinstance(one, SampleError):
            found.append(one)
            continue
        vector = next(vectors)
        found.append(vector if isinstance(vector, SampleError) else (vector, one[1]))
    return found


def _scored(row: Row, k: int, picture: np.ndarray, found: Words | SampleError) -> Row:
    if isinstance(found, SampleError):
        return Row(row.uid, row.key, FAILED, found.reason, str(found))
    words, truncated = found
    score = float(np.einsum("d,d->", picture, words, dtype=np.float32))
    if math.isnan(score):
        return Row(row.uid, row.key, FAILED, "nan_score", "the scorer returned NaN")
    return Row(row.uid, row.key, values=(k, score, truncated))
