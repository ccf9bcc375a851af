"""The one image pass: decode every image once and keep its embedding.

Writes `embeddings/<encoder>/image/<shard>.npy`, float16 (rows ok, dimensions), and beside it a
`.parquet` with a status row per sample; the n-th row that is ok belongs to the n-th row of the
array. Captioners, scorers and trainers that share an encoder read these instead of the images.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from capmix.engine.busy import Busy
from capmix.engine.local import MAX_FAILURES, run_stage
from capmix.engine.prefetch import prefetched
from capmix.engine.stage import PartWriter, Stage, missing
from capmix.images import BadImageError, decode_image
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.pool.index import bad_row, pool_inputs
from capmix.rows import FAILED, OK, Row, rows_of, table_of
from capmix.store import Counts, Store

Item = TypeVar("Item")
BATCHES_AHEAD = 3


class ImageEncoder(Protocol):
    """A frozen model that turns an image into one vector. `name` names its embedding space.

    `workers` threads decode and prepare images ahead of the model. `input_side` is the side of the
    model's input in pixels where large JPEGs may be decoded at a smaller scale (images.py).
    """

    name: str
    dimensions: int
    batch_size: int
    workers: int
    input_side: int | None

    def load(self) -> None:
        """Bring the weights into memory, where they are not there yet; encoding does so too."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """What the model reads of an RGB image: float32 (3, H, W)."""
        ...

    def encode_pixels(self, pixels: Sequence[Any]) -> np.ndarray:
        """Vectors (N, dimensions) of N prepared images."""
        ...


def embeddings_folder(encoder_name: str) -> str:
    return f"embeddings/{encoder_name}/image"


def embed(
    pool: Pool,
    encoder: ImageEncoder,
    store: Store,
    max_failures: float = MAX_FAILURES,
    busy: Busy | None = None,
    name: str | None = None,
) -> Counts:
    """Embed every image of a pool that is not embedded yet. `name` is what progress calls it."""
    stage = embed_stage(pool, encoder, name, busy)
    if missing(stage, pool.shards, store):
        encoder.load()
    return run_stage(stage, pool.shards, store, max_failures)


def embed_stage(
    pool: Pool, encoder: ImageEncoder, name: str | None = None, busy: Busy | None = None
) -> Stage:
    """The stage that runs `encoder` over a pool's images, whose work is noted in `busy`."""
    noted = busy or Busy()

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows, embeddings = embed_shard(pool, encoder, shard, noted, out)
        out.write_array(embeddings.astype(np.float16))
        out.write_table(table_of(rows, []))

    config = {"encoder": encoder.name}
    folder = embeddings_folder(encoder.name)
    return Stage(f"embed {name or encoder.name}", folder, config, pool_inputs, run_shard)


def embed_shard(
    pool: Pool, encoder: ImageEncoder, shard: Shard, busy: Busy, out: PartWriter | None = None
) -> tuple[list[Row], np.ndarray]:
    """Status rows of a shard, and the vectors (rows that are ok, dimensions) of its images.

    Rows are counted in `out` where it is given.
    """
    rows: list[Row] = []
    embeddings = [np.empty((0, encoder.dimensions), np.float32)]
    samples = prefetched(
        pool.read(shard),
        lambda sample: _prepared(sample, encoder),
        encoder.workers,
        encoder.batch_size * BATCHES_AHEAD,
    )
    for batch in batched(samples, encoder.batch_size):
        done = [future.result() for _, future in batch]
        pixels = [prepared for row, prepared in done if row.reason is None]
        if pixels:
            with busy.working(len(pixels)):
                embeddings.append(encoder.encode_pixels(pixels))
        rows += [row for row, _ in done]
        if out is not None:
            _count(out, [row for row, _ in done])
    return rows, np.concatenate(embeddings)


def _count(out: PartWriter, rows: list[Row]) -> None:
    out.count_in(len(rows))
    for row in rows:
        if row.reason:
            out.count_failed(row.reason)
    out.count_ok(sum(row.reason is None for row in rows))


def read_embeddings(store: Store, part: str) -> tuple[list[Row], np.ndarray]:
    """All status rows of an embedding part, and the float16 array of those that are ok."""
    rows = rows_of(store.read_table(f"{part}.parquet"))
    array = store.read_array(f"{part}.npy")
    expected = sum(row.status == OK for row in rows)
    if len(array) != expected:
        raise ValueError(f"{part}.npy: {len(array)} embeddings for {expected} rows")
    return rows, array


def _prepared(sample: Sample | BadSample, encoder: ImageEncoder) -> tuple[Row, Any]:
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    try:
        return Row(sample.uid, sample.key), encoder.prepare(
            decode_image(sample.image, input_side=encoder.input_side)
        )
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)), None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a row of zeros stays zeros."""
    rows = vectors.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / np.maximum(lengths, 1e-12)
    return scaled


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch
