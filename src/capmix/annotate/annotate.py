"""Annotations: columns computed from embeddings, for use in recipes.

They are written to `columns/<name>/<shard>.parquet`. In recipes, their names are NAME_COLUMN.
"""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.cliploss import negative_clip_loss
from capmix.annotate.clusters import cluster
from capmix.annotate.head import EmbeddingHead, check_column, head_columns, read_head
from capmix.annotate.normsim import norm_similarity
from capmix.annotate.semdedup import near_duplicates
from capmix.annotate.settings import (
    CLIPLOSS,
    CLUSTERS,
    HEAD,
    NORMSIM,
    SEMDEDUP,
    AnnotateSettings,
)
from capmix.annotate.vectors import (
    Columns,
    PoolVectors,
    columns_done,
    fingerprints,
    image_vectors,
    read_reference,
    reference_stamp,
    write_columns,
)
from capmix.errors import UserError
from capmix.models.tokens import encode_texts
from capmix.pool import Pool
from capmix.score.scorer import Scorer
from capmix.storage.first_texts import first_texts
from capmix.storage.layout import annotation_folder, embeddings_folder, texts_folder
from capmix.storage.marker import Counts
from capmix.storage.rows import OK
from capmix.storage.store import Store

log = logging.getLogger(__name__)

# The settings in the markers of all methods here but head, also of earlier versions.
IN_CONFIG = {
    *("method", "embeddings", "reference", "seed", "clusters", "of", "epsilon", "norm"),
    *("source", "temperature", "batch", "rounds"),
}
OF_HEAD = {"weights", "column", "activation", "output", "normalize"}


def annotate(
    store: Store,
    pool: Pool,
    name: str,
    embeddings: str,
    settings: AnnotateSettings,
    scorer: Scorer | None = None,
) -> Counts:
    """Compute the columns of the settings' method and write them as the annotation `name`.

    `embeddings` is the name of the saved embeddings. `scorer` is the model that computed them;
    cliploss needs it to embed the texts. Raises UserError if embeddings, a reference or a clusters
    annotation is missing.
    """
    method, folder = settings.method, embeddings_folder(embeddings)
    config = settings.model_dump(include=IN_CONFIG | (OF_HEAD if method == HEAD else set()))
    config |= {"embeddings": embeddings}
    config["made_of"] = _made_of(store, pool, folder, settings, scorer)
    head = _head(settings) if method == HEAD else None
    if head is not None:  # the file may move, but not change
        config |= {"weights": head.digest}
    done = columns_done(store, pool.shards, name, folder, config)
    if done is not None:
        log.info("annotate %s: %s samples already done", name, f"{done.ok:,}")
        return done
    with store.scratch() as scratch:
        vectors = image_vectors(store, pool.shards, embeddings, scratch)
        if method == "cliploss":
            assert scorer is not None
            columns = _cliploss(store, vectors, scorer, settings, scratch)
        elif method == "clusters":
            reference = _reference(settings, embeddings, vectors) if settings.reference else None
            columns = cluster(vectors, settings.clusters, reference, settings.seed)
        elif method == "normsim":
            reference = _reference(settings, embeddings, vectors)
            columns = norm_similarity(vectors, reference, settings.norm)
        elif head is not None:
            columns = head_columns(vectors, embeddings, head, settings)
        else:
            numbers, similarity = _clusters_of(store, vectors, settings.of)
            columns = near_duplicates(vectors, numbers, similarity, settings.epsilon)
        if _made_of(store, pool, folder, settings, scorer) != config["made_of"]:
            raise UserError(
                f"annotate {name}: its inputs were overwritten during the run; rerun the command"
            )
        counts = write_columns(store, vectors, name, columns, folder, config)
    named = ", ".join(f"{name}_{column}" for column in columns)
    log.info("annotate %s: computed %s for %s samples", name, named, f"{counts.ok:,}")
    return counts


def _made_of(
    store: Store, pool: Pool, folder: str, settings: AnnotateSettings, scorer: Scorer | None
) -> str:
    """Return a digest (32 hex digits) of all inputs besides the settings.

    It covers all shards, because each value depends on all of them.
    """
    folders = [folder]
    if settings.method == SEMDEDUP:
        folders.append(annotation_folder(settings.of))
    if settings.method == CLIPLOSS:
        folders.append(texts_folder(settings.source))
    digest = hashlib.sha256("".join(fingerprints(store, folders, pool.shards)).encode())
    if scorer is not None:
        digest.update(json.dumps(scorer.settings, sort_keys=True).encode())
    if settings.reference is not None and settings.method in (CLUSTERS, NORMSIM):
        digest.update(reference_stamp(settings.reference, folder).encode())
    return digest.hexdigest()[:32]


def _head(settings: AnnotateSettings) -> EmbeddingHead:
    if settings.weights is None:
        raise UserError("annotate head: expected --weights, a .safetensors file")
    check_column(settings.column)
    return read_head(settings.weights)


def _reference(settings: AnnotateSettings, name: str, vectors: PoolVectors) -> np.ndarray:
    if settings.reference is None:
        raise UserError("annotate: expected --reference, a .npy file or a work directory")
    return read_reference(settings.reference, name, vectors.array.shape[1])


def _clusters_of(store: Store, vectors: PoolVectors, name: str) -> tuple[np.ndarray, np.ndarray]:
    numbers, similarity = [], []
    for shard in vectors.shards:
        part = f"{annotation_folder(name)}/{shard.name}"
        if store.read_marker(part) is None:
            raise UserError(
                f"no annotation {name!r}: run `capmix annotate --method clusters` first"
            )
        table = store.read_table(f"{part}.parquet", ["status", "cluster", "similarity"])
        table = table.filter(pc.equal(table["status"], OK))
        numbers.append(table["cluster"].to_numpy())
        similarity.append(table["similarity"].to_numpy())
    found = np.concatenate(numbers), np.concatenate(similarity)
    if len(found[0]) != len(vectors):
        raise UserError(f"annotation {name!r} was computed from other embeddings: rerun it")
    return found


def _cliploss(
    store: Store, vectors: PoolVectors, scorer: Scorer, settings: AnnotateSettings, scratch: str
) -> Columns:
    """Compute the column `value`; null for samples without a text."""
    texts = texts_folder(settings.source)
    with_text: list[np.ndarray] = []
    files = {kind: (Path(scratch) / f"{kind}.bin").open("wb") for kind in ("pictures", "words")}
    width, start = 0, 0
    for shard, rows in zip(vectors.shards, vectors.rows, strict=True):
        first = first_texts(store, f"{texts}/{shard.name}")
        known = dict(zip(first["uid"].to_pylist(), first["text"].to_pylist(), strict=True))
        seen = [row for row in rows if row.status == OK]
        here = [i for i, row in enumerate(seen) if (known.get(row.uid) or "").strip()]
        if here:
            images = scorer.project_images(vectors.array[start : start + len(seen)][here])
            words = encode_texts(scorer, [known[seen[i].uid] for i in here])
            width = words.shape[1]
            files["pictures"].write(images.astype(np.float16).tobytes())
            files["words"].write(words.astype(np.float16).tobytes())
        with_text.append(np.array(here, np.int64) + start)
        start += len(seen)
    for file in files.values():
        file.close()
    numbers = np.concatenate(with_text)
    if not len(numbers):
        raise UserError(f"no sample has a text from source {settings.source!r}")
    pictures, written = (
        PoolVectors(np.memmap(file.name, np.float16, "r").reshape(-1, width), [], [])
        for file in files.values()
    )
    values = np.full(len(vectors), np.nan, np.float32)
    values[numbers] = negative_clip_loss(
        pictures, written, settings.temperature, settings.batch, settings.rounds, settings.seed
    )
    return {"value": (values, pa.float32())}
