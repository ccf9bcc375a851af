"""The image pass: decode every image once and store its embedding.

Writes `embeddings/<encoder>/image/<shard>.npy`, float16 (ok rows, dimensions), and a `.parquet`
with a status row per sample. The n-th row of the array belongs to the n-th row with status ok.
Captioners, scorers and trainers that share an encoder read the embeddings instead of the images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from capmix.engine.batches import BATCH_TIMEOUT, LONGEST_DETAIL, Batches, SampleError, batched
from capmix.engine.busy import Busy
from capmix.engine.prefetch import BATCHES_AHEAD, Finished
from capmix.engine.read_ahead import ReadAhead, read_ahead
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.images import BadImageError, Preprocess, decode_image, decode_unconverted
from capmix.models.index import bad_row, pool_inputs
from capmix.models.pixels import PixelPlan
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.storage.layout import embeddings_folder
from capmix.storage.rows import FAILED, OK, Row, column_names, rows_of, table_of
from capmix.storage.store import Store

DEFAULTS: dict[str, Any] = {"preprocess": "capmix", "runtime": "torch"}
PreparedSample = tuple[Sample | BadSample, Finished[tuple[Row, Any]]]


class ImageEncoder(Protocol):
    """A frozen model that embeds an image as one vector. `name` identifies its embedding space.

    `workers` is the number of threads that decode and prepare images ahead of the model.
    `input_side` is the side of the model's input in pixels if large JPEGs may be decoded at a
    smaller scale (see images.py), else None. An encoder may have an attribute `preprocess`; with
    "open_clip", `prepare` gets images as Image.open returns them, in the file's own mode. It may
    have an attribute `pixels`, a PixelPlan or None: if there is a plan, it prepares the images
    instead of `prepare`, and `encode_pixels` gets uint8 arrays. Its attribute `embedded_with` has
    further settings that the vectors depend on, and `weights` a digest of local weights, or None.
    """

    name: str
    dimensions: int
    batch_size: int
    workers: int
    input_side: int | None

    def load(self) -> None:
        """Load the weights, if they are not loaded yet. `encode_pixels` does so too."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """Convert an RGB image to the model's input, float32 (3, H, W)."""
        ...

    def encode_pixels(self, pixels: Sequence[Any]) -> np.ndarray:
        """Return vectors (N, dimensions) of N prepared images."""
        ...


def embed_stage(
    pool: ImagePool, encoder: ImageEncoder, batch_timeout: float = BATCH_TIMEOUT
) -> Stage:
    """Return the stage that runs `encoder` over a pool's images."""
    batches, images = Batches(batch_timeout), PreparedImages(pool, encoder)

    def run_shard(shard: Shard, out: PartWriter) -> None:
        rows, embeddings = embed_shard(images, shard, batches, out.busy)
        out.count_in(len(rows))
        for row in rows:
            if row.reason:
                out.count_failed(row.reason)
        out.count_ok(len(embeddings))
        out.write_array(embeddings.astype(np.float16))
        out.write_table(table_of(rows, []))

    config = embedding_config(encoder)
    weights = config.get("weights")
    folder = embeddings_folder(encoder.name)
    return Stage(
        f"embed {encoder.name}",
        folder,
        config,
        pool_inputs,
        run_shard,
        # A part without a digest, of an older capmix, counts as one of these weights.
        defaults=DEFAULTS | {"weights": weights},
        columns=column_names([]),
        provenance=getattr(encoder, "provenance", {}),
        ahead=images.whole,
    )


def embedding_config(encoder: ImageEncoder) -> dict[str, Any]:
    """Return the settings that an encoder's vectors depend on."""
    config = {"encoder": encoder.name, "preprocess": preprocess_of(encoder)}
    config |= getattr(encoder, "embedded_with", {})
    weights = getattr(encoder, "weights", None)
    return config | ({"weights": weights} if weights is not None else {})


class PreparedImages:
    """The samples of a pool, read and prepared for an encoder in threads, ahead of it.

    `whole` reads all samples of a shard.
    """

    def __init__(self, pool: ImagePool, encoder: ImageEncoder):
        self.encoder, self._pool = encoder, pool
        self._prepare: Callable[[Sample | BadSample], tuple[Row, Any]]
        self._prepare = lambda sample: _prepared(sample, encoder)
        self._held = encoder.workers, encoder.batch_size * BATCHES_AHEAD, alone_on_its_core()
        self.whole: ReadAhead[Shard, Sample | BadSample, tuple[Row, Any]]
        self.whole = ReadAhead(lambda shard: pool.read(shard), self._prepare, *self._held)

    def of(self, shard: Shard, keys: frozenset[str] | None = None) -> Iterator[PreparedSample]:
        """Yield the samples of a shard; with `keys`, only those with these keys."""
        if keys is None:
            return self.whole.of(shard)
        return read_ahead(self._pool.read(shard, keys), self._prepare, *self._held)


def embed_shard(
    images: PreparedImages,
    shard: Shard,
    batches: Batches,
    busy: Busy,
    keys: frozenset[str] | None = None,
) -> tuple[list[Row], np.ndarray]:
    """Return the status rows of a shard, and the vectors (ok rows, dimensions) of its images.

    With `keys`, only the samples with these keys are read.
    """
    encoder = images.encoder
    if keys is not None and not keys:
        return [], np.empty((0, encoder.dimensions), np.float32)
    encoder.load()
    rows: list[Row] = []
    vectors: list[np.ndarray] = []
    for batch in batched(images.of(shard, keys), encoder.batch_size):
        done = [finished.result() for _, finished in batch]
        pixels = [prepared for row, prepared in done if row.reason is None]
        with busy.working(len(pixels)):
            found = iter(batches.run(lambda some: list(encoder.encode_pixels(some)), pixels))
        for row, _ in done:
            if row.reason is None:
                row = _embedded(row, next(found), vectors)
            rows.append(row)
    if not vectors:
        return rows, np.empty((0, encoder.dimensions), np.float32)
    return rows, np.stack(vectors)


def _embedded(row: Row, vector: np.ndarray | SampleError, vectors: list[np.ndarray]) -> Row:
    """Return the status row for an image's result, and append a valid vector to `vectors`."""
    if isinstance(vector, SampleError):
        return Row(row.uid, row.key, FAILED, vector.reason, str(vector))
    if not np.isfinite(vector).all():
        return Row(row.uid, row.key, FAILED, "not_finite", "the model returned NaN or infinity")
    vectors.append(vector)
    return row


def read_embeddings(store: Store, part: str) -> tuple[list[Row], np.ndarray]:
    """Return all status rows of an embedding part, and the float16 array (ok rows, dimensions)."""
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
        return Row(sample.uid, sample.key), prepared_image(sample.image, encoder)
    except BadImageError as error:
        reason, detail = error.reason, str(error)
    except Exception as error:  # processors raise various types on images with odd shapes
        reason, detail = "model_error", f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
    return Row(sample.uid, sample.key, FAILED, reason, detail), None


def prepared_image(data: bytes, encoder: ImageEncoder) -> Any:
    """Decode an image and convert it to what `encoder.encode_pixels` takes.

    Raises BadImageError, and what the encoder raises for images that it cannot prepare.
    """
    plan: PixelPlan | None = getattr(encoder, "pixels", None)
    if plan is not None:
        return plan.prepare(data)
    if preprocess_of(encoder) == "open_clip":
        return encoder.prepare(decode_unconverted(data))
    return encoder.prepare(decode_image(data, input_side=encoder.input_side))


def preprocess_of(encoder: ImageEncoder) -> Preprocess:
    """Return how images are decoded for an encoder."""
    found: Preprocess = getattr(encoder, "preprocess", DEFAULTS["preprocess"])
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalize rows to length 1, float32; a row of zeros stays zeros."""
    rows = vectors.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / np.maximum(lengths, 1e-12)
    return scaled
