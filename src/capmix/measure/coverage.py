"""Topics of the texts of each source, and a map of all sources over the same axes.

Topics are k-means clusters of text embeddings, described by their most distinctive words. The map
is computed by t-SNE. Both use scikit-learn and the embeddings of a scorer's text tower.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.measure.encode import encode_all
from capmix.measure.population import read_sample, text_digests
from capmix.measure.settings import MeasureSettings
from capmix.models.registry import require
from capmix.score.scorer import Scorer
from capmix.settings.base import defaults_of
from capmix.storage.draft import Draft
from capmix.storage.layout import MEASURES
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

PART = f"{MEASURES}/coverage"
TOPICS = f"{MEASURES}/topics.parquet"
DEFAULTS = defaults_of(MeasureSettings)
TEXTS_OF_SOURCE = 5_000  # most texts per source that topics are computed from
TOPIC_WORDS = 5
AT_LEAST = 10  # texts of a topic that count as covering it
LONGEST_WORD = 40


def measure_coverage(
    store: Store,
    digests: Mapping[str, str],
    sources: Sequence[str],
    settings: MeasureSettings,
    scorer: Scorer,
) -> dict[str, Any]:
    """Compute topics, and write them to `measures/topics.parquet` (uid, draw, text, source, topic)
    and the map to `measures/coverage.parquet` (source, uid, text, topic, x, y).

    Returns `topics`, the words of each topic and its share of each source's texts; and by source
    `texts`, their number, `covered_topics`, the number of topics with at least AT_LEAST of them,
    and `effective_topics`, exp of the entropy of the shares, between 1 and the number of topics.
    Raises UserError if scikit-learn is missing.
    """
    require(["sklearn"], "topics and the map of texts", "measure")
    import sklearn

    inputs = text_digests(digests, sources)
    config = {
        "sources": list(sources),
        "scorer": scorer.settings,
        "scikit-learn": sklearn.__version__,
    } | settings.model_dump(include={"topics", "map_points", "sample", "seed"})

    def make(draft: Draft) -> Marker:
        table = read_sample(store)
        texts = _texts(table, sources)
        if len(texts) < 2 * settings.topics:
            raise UserError(
                f"--topics {settings.topics}: too many for the {len(texts)} texts of the sample; "
                "use at least two texts per topic"
            )
        vectors = encode_all(scorer, texts["text"].to_pylist())
        topic = _topics(vectors, settings)
        words = _topic_words(texts["text"].to_pylist(), topic, settings.topics)
        counts = _counts(texts["source"].to_pylist(), topic, sources, settings.topics)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        of_text = pa.array(topic, pa.int32())
        draft.write_table(TOPICS, texts.append_column("topic", of_text))
        _write_map(draft, texts, vectors, topic, sources, settings)
        order = np.argsort(-shares.mean(axis=0), kind="stable")
        found = {
            "topics": [
                {
                    "topic": int(number),
                    "words": words[number],
                    "shares": dict(zip(sources, shares[:, number].tolist(), strict=True)),
                }
                for number in order
            ],
            "texts": dict(zip(sources, counts.sum(axis=1).tolist(), strict=True)),
            "covered_topics": dict(
                zip(sources, (counts >= AT_LEAST).sum(axis=1).tolist(), strict=True)
            ),
            "effective_topics": dict(zip(sources, map(effective_number, shares), strict=True)),
        }
        return Marker(inputs, config, len(texts), Counts(ok=len(texts)), found)

    marker, _ = once(store, PART, inputs, config, make, DEFAULTS, [f"{PART}.parquet", TOPICS])
    return marker.extra


def _texts(table: pa.Table, sources: Sequence[str]) -> pa.Table:
    """Return uid, draw, text and source of the texts with the lowest draws, source by source."""
    tables = []
    for source in sources:
        texts = table.select(["uid", "draw", f"{source}_text"])
        texts = texts.rename_columns(["uid", "draw", "text"])
        keep = [i for i, text in enumerate(texts["text"].to_pylist()) if text][:TEXTS_OF_SOURCE]
        texts = texts.take(pa.array(keep, pa.int64()))
        tables.append(texts.append_column("source", pa.repeat(pa.scalar(source), len(texts))))
    return pa.concat_tables(tables)


def _topics(vectors: np.ndarray, settings: MeasureSettings) -> np.ndarray:
    from sklearn.cluster import KMeans

    model = KMeans(settings.topics, n_init=4, random_state=settings.seed)
    found: np.ndarray = model.fit_predict(vectors)
    return found


def _topic_words(texts: Sequence[str], topic: np.ndarray, topics: int) -> list[list[str]]:
    """Return the words with the highest TF-IDF in each topic, whose texts form one document."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = ["" for _ in range(topics)]
    joined: list[list[str]] = [[] for _ in documents]
    for text, number in zip(texts, topic.tolist(), strict=True):
        joined[number].append(text)
    documents = ["\n".join(one) for one in joined]
    try:
        model = TfidfVectorizer(stop_words="english", sublinear_tf=True, max_features=20_000)
        weights = model.fit_transform(documents)
    except ValueError:  # there are only stop words
        return [[] for _ in documents]
    names = model.get_feature_names_out()
    found = []
    for row in weights:
        best = np.argsort(-row.toarray()[0], kind="stable")[:TOPIC_WORDS]
        found.append([str(names[i])[:LONGEST_WORD] for i in best if row[0, i] > 0])
    return found


def _counts(
    of_text: Sequence[str], topic: np.ndarray, sources: Sequence[str], topics: int
) -> np.ndarray:
    """Return the number of texts of each source in each topic, int64 (sources, topics)."""
    counts = np.zeros((len(sources), topics), np.int64)
    np.add.at(counts, (np.array([sources.index(one) for one in of_text]), topic), 1)
    return counts


def effective_number(shares: np.ndarray) -> float:
    """Return the exponential of the entropy of shares that add up to 1, float64 (N,)."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(np.exp(-(shares * logs).sum()))


def _write_map(
    draft: Draft,
    texts: pa.Table,
    vectors: np.ndarray,
    topic: np.ndarray,
    sources: Sequence[str],
    settings: MeasureSettings,
) -> None:
    from sklearn.manifold import TSNE

    of_text = np.array(texts["source"].to_pylist())
    chosen = np.concatenate(
        [np.flatnonzero(of_text == source)[: settings.map_points] for source in sources]
    )
    neighbours = min(30.0, (len(chosen) - 1) / 3)  # 30 is scikit-learn's default
    model = TSNE(init="pca", perplexity=neighbours, random_state=settings.seed)
    places = model.fit_transform(vectors[chosen])
    table = (
        texts.drop_columns(["draw"])
        .take(pa.array(chosen))
        .append_column("topic", pa.array(topic[chosen], pa.int32()))
    )
    for name, values in zip("xy", places.T.astype(np.float32), strict=True):
        table = table.append_column(name, pa.array(values))
    draft.write_table(f"{PART}.parquet", table)
