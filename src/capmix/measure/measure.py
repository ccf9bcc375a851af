"""Numbers about a pool's texts by source: how varied they are, and how well they fit the images."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import numpy as np

from capmix.mix.columns import measured_columns
from capmix.mix.table import query, sample_table
from capmix.pool import Pool
from capmix.score.stage import scores_folder, texts_folder
from capmix.store import Counts, Marker, Store, once

FOLDER = "measures"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def measure(
    store: Store, pool: Pool, scorer: str, sources: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Measures by source, kept in `measures/measures.json`. Needs the captions and the scores.

    texts, unique_texts, mean_words, vocabulary, unique_trigrams (of lower-cased words, as the
    paper counts diversity), share_repeated_5 (texts that stand on five samples or more),
    mean_score and deciles (of the score, 11 values), truncated (texts longer than the scorer's
    context) and flags (captions by flag).
    """
    names = [texts_folder(source) for source in ("raw", *sources)]
    names += [scores_folder(scorer, source) for source in sources]
    parts = [f"{name}/{shard.name}" for name in dict.fromkeys(names) for shard in pool.shards]
    inputs = {part: store.fingerprint(part) for part in parts}
    config: dict[str, Any] = {"scorer": scorer, "sources": list(sources)}

    def make() -> Marker:
        found: dict[str, dict[str, Any]] = {}
        rows_in = 0
        with sample_table(store, pool, measured_columns(sources, scorer)) as connection:
            for source in sources:
                table = query(connection, f"select {source}_text, {source}_score from samples")
                rows_in = len(table)
                scores = table.column(f"{source}_score").drop_null().to_numpy()
                texts = table.column(f"{source}_text").to_pylist()
                found[source] = text_measures(text for text in texts if text) | _noise(scores)
                found[source] |= _faults(connection, source)
        return Marker(inputs, config, rows_in, Counts(ok=rows_in), {"measures": found})

    marker, _ = once(store, f"{FOLDER}/measures", inputs, config, make)
    measures: dict[str, dict[str, Any]] = json.loads(json.dumps(marker.extra["measures"]))
    return measures


def text_measures(texts: Iterable[str]) -> dict[str, float]:
    """Diversity and length of a population of texts; all zero where there is none."""
    standing: Counter[str] = Counter()
    vocabulary: set[str] = set()
    trigrams: set[tuple[str, ...]] = set()
    words_in_all = 0
    for text in texts:
        standing[text] += 1
        words = WORD.findall(text.lower())
        words_in_all += len(words)
        vocabulary.update(words)
        trigrams.update(zip(words, words[1:], words[2:], strict=False))
    total = standing.total()
    repeated = sum(count for count in standing.values() if count >= 5)
    return {
        "texts": total,
        "unique_texts": len(standing),
        "share_repeated_5": repeated / total if total else 0.0,
        "mean_words": words_in_all / total if total else 0.0,
        "vocabulary": len(vocabulary),
        "unique_trigrams": len(trigrams),
    }


def _faults(connection: duckdb.DuckDBPyConnection, source: str) -> dict[str, Any]:
    sql = f"select count(*) filter (where {source}_truncated) as n from samples"
    truncated = query(connection, sql).column("n")[0].as_py()
    if source == "raw":
        return {"truncated": truncated, "flags": {}}
    sql = f"select unnest({source}_flags) as flag, count(*) as n from samples group by 1 order by 1"
    rows = query(connection, sql).to_pylist()
    return {"truncated": truncated, "flags": {row["flag"]: row["n"] for row in rows}}


def _noise(scores: np.ndarray) -> dict[str, Any]:
    if not len(scores):
        return {"mean_score": None, "deciles": []}
    deciles = np.quantile(scores, np.linspace(0, 1, 11))
    return {
        "mean_score": round(float(scores.mean()), 6),
        "deciles": [round(float(value), 6) for value in deciles],
    }
