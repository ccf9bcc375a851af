"""Cache the image and text vectors of a model across tasks.

Tasks share images (the two CLEVR tasks, a set for both classification and retrieval) and texts (the
classes of ImageNet and its distribution shifts, with 80 templates each). Images are keyed by a hash
of their bytes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from capmix.engine.batches import batched
from capmix.engine.prefetch import BATCHES_AHEAD
from capmix.engine.progress import progress
from capmix.engine.read_ahead import read_ahead
from capmix.errors import UserError
from capmix.evaluation.evalset import EvalItem, EvalSet
from capmix.models.device import alone_on_its_core
from capmix.models.image_pass import ImageEncoder
from capmix.models.images import BadImageError, decode_as_stored
from capmix.models.tokens import TextEncoder, encode_texts

KEY_BYTES = 16


class TwoTowers(TextEncoder, Protocol):
    """A model with image and text encoders that return unit vectors, float32 (N, D)."""

    @property
    def encoder(self) -> ImageEncoder: ...


class VectorCache:
    """The image and text vectors of one model, each computed once."""

    def __init__(self, model: TwoTowers):
        self._model = model
        self._images: dict[bytes, np.ndarray] = {}
        self._texts: dict[str, np.ndarray] = {}

    def of_images(self, evalset: EvalSet) -> tuple[list[EvalItem], np.ndarray]:
        """Return the items of a set without their images, and unit vectors (N, D) of the images.

        Raises UserError if an image cannot be read.
        """
        items: list[EvalItem] = []
        keys: list[bytes] = []
        encoder = self._model.encoder
        stream = read_ahead(
            _recorded(evalset, items, keys),
            lambda item: self._prepared(evalset, item),
            encoder.workers,
            encoder.batch_size * BATCHES_AHEAD,
            alone_on_its_core(),
        )
        waiting: dict[bytes, np.ndarray] = {}
        for _, finished in progress(f"eval {evalset.name}", "image", work=stream):
            key, pixels = finished.result()
            if pixels is not None and key not in self._images:
                waiting[key] = pixels
            if len(waiting) == encoder.batch_size:
                self._encode(waiting)
        self._encode(waiting)
        if not items:
            raise UserError(f"evaluation set {evalset.name}: no images")
        return items, np.stack([self._images[key] for key in keys])

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors (N, D)."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            self._texts |= zip(new, encode_texts(self._model, new), strict=True)
        return np.stack([self._texts[text] for text in texts])

    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """Return unit vectors (classes, D): normalised means over templates."""
        rows = []
        for some in batched(classes, 64):
            texts = [template.replace("{c}", name) for name in some for template in templates]
            vectors = self.of_texts(texts).reshape(len(some), len(templates), -1).mean(axis=1)
            rows.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        return np.concatenate(rows)

    def _prepared(self, evalset: EvalSet, item: EvalItem) -> tuple[bytes, np.ndarray | None]:
        key = _key(item.image)
        if key in self._images:
            return key, None
        try:
            return key, self._model.encoder.prepare(decode_as_stored(item.image))
        except BadImageError as error:
            where = f"evaluation set {evalset.name}, sample {item.key}"
            raise UserError(f"{where}: {error}. Download the set again.") from error

    def _encode(self, waiting: dict[bytes, np.ndarray]) -> None:
        if waiting:
            vectors = self._model.encoder.encode_pixels(list(waiting.values()))
            self._images |= zip(waiting, vectors, strict=True)
            waiting.clear()


def _recorded(evalset: EvalSet, items: list[EvalItem], keys: list[bytes]) -> Iterable[EvalItem]:
    """Yield each item; append it without its image to `items`, and its image key to `keys`."""
    for item in evalset.items():
        items.append(replace(item, image=b""))
        keys.append(_key(item.image))
        yield item


def _key(image: bytes) -> bytes:
    return hashlib.blake2b(image, digest_size=KEY_BYTES).digest()
