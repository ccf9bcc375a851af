"""The one image pass: decode every image once and keep its embedding.

Writes `embeddings/<encoder>/image/<shard>.npy`, float16 (rows ok, dimensions), and beside it a
`.parquet` with a status row per sample; the n-th row that is ok belongs to the n-th row of the
array. Captioners, scorers and trainers that share an encoder read these instead of the images.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from capmix.engine.local import MAX_FAILURES, run_stage
from capmix.engine.stage import PartWriter, Stage, missing
from capmix.images import BadImageError, decode_image
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.pool.index import bad_row, pool_inputs
from capmix.rows import FAILED, OK, Row, rows_of, table_of
from capmix.store import Counts, Store


class ImageEncoder(Protocol):
    """A frozen model that turns an image into one vector. `name` names its embedding space."""

    name: str
    dimensions: int
    batch_size: int

    def load(self) -> None:
        """Bring the weights into memory, where they are not there yet; `encode` does so too."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Float16 (N, dimensions) of N RGB images."""
        ...


def embeddings_folder(encoder_name: str) -> str:
    return f"embeddings/{encoder_name}/image"


def embed(
    pool: Pool,
    encoder: ImageEncoder,
    store: Store,
    max_failures: float = MAX_FAILURES,
    name: str | None = None,
) -> Counts:
    """Embed every image of a pool that is not embedded yet. `name` is what progress calls it."""
    stage = embed_stage(pool, encoder, name)
    if missing(stage, pool.shards, store):
        encoder.load()
    return run_stage(stage, pool.shards, store, max_failures)


def embed_stage(pool: Pool, encoder: ImageEncoder, name: str | None = None) -> Stage:
    """The stage that runs `encoder` over a pool's images."""

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows: list[Row] = []
        embeddings = [np.empty((0, encoder.dimensions), np.float16)]
        for batch in batched(pool.read(shard), encoder.batch_size):
            out.count_in(len(batch))
            decoded = [_decode(sample) for sample in batch]
            images = [image for _, image in decoded if image is not None]
            embeddings.append(encoder.encode(images))
            for row, _ in decoded:
                rows.append(row)
                if row.reason:
                    out.count_failed(row.reason)
            out.count_ok(len(images))
        out.write_array(np.concatenate(embeddings))
        out.write_table(table_of(rows, []))

    config = {"encoder": encoder.name}
    folder = embeddings_folder(encoder.name)
    return Stage(f"embed {name or encoder.name}", folder, config, pool_inputs, run_shard)


def read_embeddings(store: Store, part: str) -> tuple[list[Row], np.ndarray]:
    """All status rows of an embedding part, and the float16 array of those that are ok."""
    rows = rows_of(store.read_table(f"{part}.parquet"))
    array = store.read_array(f"{part}.npy")
    expected = sum(row.status == OK for row in rows)
    if len(array) != expected:
        raise ValueError(f"{part}.npy: {len(array)} embeddings for {expected} rows")
    return rows, array


def _decode(sample: Sample | BadSample) -> tuple[Row, Image.Image | None]:
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    try:
        return Row(sample.uid, sample.key), decode_image(sample.image)
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)), None


def batched(samples: Iterable[Sample | BadSample], size: int) -> Iterator[list[Sample | BadSample]]:
    """Lists of `size` samples, the last one shorter."""
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
