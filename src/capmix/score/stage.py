"""Score a source's texts: writes `scores/<scorer>/<source>/<shard>.parquet`.

Columns beside the status: `k`, and `score`, the float32 cosine similarity of image and text.
"""

import math

import numpy as np
import pyarrow as pa

from capmix.caption.stage import captions_folder
from capmix.embed import embeddings_folder, read_embeddings
from capmix.engine.stage import PartWriter, Stage
from capmix.pool import Shard
from capmix.pool.index import FOLDER as SAMPLES
from capmix.rows import DROPPED, FAILED, OK, Row, rows_of, table_of
from capmix.score.scorer import Scorer
from capmix.store import Store

FIELDS = [("k", pa.int32()), ("score", pa.float32())]


def scores_folder(scorer_name: str, source: str) -> str:
    return f"scores/{scorer_name}/{source}"


def texts_folder(source: str) -> str:
    return SAMPLES if source == "raw" else captions_folder(source)


def score_stage(store: Store, scorer: Scorer, source: str) -> Stage:
    """The stage in which `scorer` compares every text of `source` with its image's embedding."""
    images, texts = embeddings_folder(scorer.encoder.name), texts_folder(source)

    def inputs(shard: Shard) -> dict[str, str]:
        return {folder: store.fingerprint(f"{folder}/{shard.name}") for folder in (images, texts)}

    def run_shard(shard: Shard, out: PartWriter) -> None:
        samples, embeddings = read_embeddings(store, f"{images}/{shard.name}")
        seen = (row for row in samples if row.status == OK)
        position = {row.uid: i for i, row in enumerate(seen)}
        problem = {row.uid: row for row in samples if row.status != OK and row.uid}
        table = store.read_table(f"{texts}/{shard.name}.parquet")
        captions = table.column("text").to_pylist()
        numbers = table.column("k").to_pylist() if "k" in table.column_names else [0] * len(table)
        rows = [
            _unscored(row, text, problem)
            for row, text in zip(rows_of(table), captions, strict=True)
        ]
        todo = [i for i, row in enumerate(rows) if row.status == OK]
        scores = np.empty(0, np.float32)
        if todo:
            pictures = scorer.project_images(embeddings[[position[rows[i].uid] for i in todo]])
            words = scorer.encode_texts([captions[i] for i in todo])
            scores = np.einsum("nd,nd->n", pictures, words, dtype=np.float32)
        for i, score in zip(todo, scores.tolist(), strict=True):
            rows[i] = _scored(rows[i], numbers[i], score)
        for row in rows:
            out.count_in()
            if row.status == OK:
                out.count_ok()
            elif row.status == DROPPED:
                out.count_dropped(row.reason or "")
            else:
                out.count_failed(row.reason or "")
        out.write_table(table_of(rows, FIELDS))

    config = {"source": source, **scorer.settings}
    name = f"score {source} by {scorer.name}"
    return Stage(name, scores_folder(scorer.name, source), config, inputs, run_shard)


def _unscored(row: Row, text: str | None, problem: dict[str, Row]) -> Row:
    if row.status != OK:
        return row
    if row.uid is not None and row.uid in problem:
        return problem[row.uid]
    if not text or not text.strip():
        return Row(row.uid, row.key, DROPPED, "no_text", "there is no text to score")
    return row


def _scored(row: Row, k: int, score: float) -> Row:
    if math.isnan(score):
        return Row(row.uid, row.key, FAILED, "nan_score", "the scorer gave NaN")
    return Row(row.uid, row.key, values=(k, score))
