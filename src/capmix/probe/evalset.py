"""Evaluation sets with the features that a probe's frozen tower computes from their images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from capmix.engine.batches import batched
from capmix.engine.read_ahead import read_ahead
from capmix.errors import UserError
from capmix.evaluation.evalset import EvalItem, EvalSet
from capmix.models.image_pass import ImageEncoder, prepared_image
from capmix.models.images import BadImageError
from capmix.probe.images import FrozenImages
from capmix.storage.draft import Draft
from capmix.storage.layout import EVALSETS
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store


@dataclass(frozen=True)
class FeatureSet:
    """Features, float16 (N, dimensions), of the `items` of a set; the items' images are dropped."""

    evalset: EvalSet
    items: list[EvalItem]
    features: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The class numbers of a classification set, int64 (N,)."""
        return np.array([item.label for item in self.items], np.int64)

    @property
    def texts(self) -> list[str]:
        """All captions of a retrieval set."""
        return [text for item in self.items for text in item.texts]

    @property
    def image_of_text(self) -> np.ndarray:
        """The number of the image that each text belongs to, int64 (texts,)."""
        return np.repeat(np.arange(len(self.items)), [len(item.texts) for item in self.items])


def load_features(
    store: Store, evalset: EvalSet, images: FrozenImages, load: Callable[[], ImageEncoder]
) -> FeatureSet:
    """Return the features of a set, computed once and stored in the work directory.

    `load` returns the encoder of `images`; it is called only if there are no features yet. Raises
    UserError for an unsupported kind of set, or an image that cannot be read.
    """
    if evalset.kind == "association":
        raise UserError(
            f"evaluation set {evalset.name}: probes support only classification and retrieval sets"
        )
    part = f"{EVALSETS}/{evalset.name}/{images.name}"
    inputs, config = {"evalset": evalset.digest}, images.feature_config

    def make(draft: Draft) -> Marker:
        encoder = load()
        arrays = [
            encoder.encode_pixels([finished.result() for _, finished in batch])
            for batch in batched(
                read_ahead(
                    evalset.items(),
                    lambda item: _prepared(evalset, encoder, item),
                    encoder.workers,
                    3 * encoder.batch_size,
                ),
                encoder.batch_size,
            )
        ]
        if not arrays:
            raise UserError(f"evaluation set {evalset.name}: no images")
        features = np.concatenate(arrays).astype(np.float16)
        draft.write_array(f"{part}.npy", features)
        return Marker(inputs, config, len(features), Counts(ok=len(features)))

    once(store, part, inputs, config, make, files=[f"{part}.npy"])
    items = [replace(item, image=b"") for item in evalset.items()]
    if evalset.kind == "classification" and any(item.label is None for item in items):
        raise UserError(f"evaluation set {evalset.name}: samples without a .cls member")
    return FeatureSet(evalset, items, store.read_array(f"{part}.npy"))


def _prepared(evalset: EvalSet, encoder: ImageEncoder, item: EvalItem) -> np.ndarray:
    try:
        prepared: np.ndarray = prepared_image(item.image, encoder)
    except BadImageError as error:
        raise UserError(f"evaluation set {evalset.name}, sample {item.key}: {error}") from error
    return prepared
