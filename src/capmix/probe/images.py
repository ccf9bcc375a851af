"""The frozen image side of a probe: embeddings of the pool, saved by any encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capmix.errors import UserError
from capmix.mini.image_tower import LiteTower
from capmix.models.image_pass import (
    DEFAULTS,
    ImageEncoder,
    embedding_config,
    read_embeddings,
    unit,
)
from capmix.score.scorers import make_scorer
from capmix.score.settings import ScoreSettings
from capmix.settings.base import make
from capmix.storage.compare import same_settings
from capmix.storage.layout import EMBEDDINGS, embeddings_folder
from capmix.storage.rows import OK
from capmix.storage.store import Store

MINI = "mini"  # how the command line names the embedded tower
EMBEDDED_TOWER = LiteTower.name
HOW = "`capmix score --save-embeddings --model MODEL`"


@dataclass(frozen=True)
class FrozenImages:
    """Image vectors of one encoder. `name` is their folder in embeddings/.

    `config` are the settings that the vectors were computed with, from their markers; empty for the
    embedded tower, whose name identifies its weights.
    """

    name: str = EMBEDDED_TOWER
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        return self.name == EMBEDDED_TOWER

    @property
    def feature_config(self) -> dict[str, Any]:
        """The settings of the features of evaluation sets."""
        return {"encoder": self.name, **self.config}

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """Return unit vectors, float32 (N, D).

        The embedded tower's features are averages of rectified activations, with a few large
        values: their square root is taken first.
        """
        if self.is_embedded:
            features = np.sqrt(np.maximum(features.astype(np.float32), 0))
        return unit(features)

    def of_shard(self, store: Store, shard: str) -> tuple[dict[str, int], np.ndarray]:
        """Return the row of each uid, and the vectors of a shard, float16 (rows, D).

        Raises UserError if the shard has no embeddings, or some of different settings.
        """
        part = f"{embeddings_folder(self.name)}/{shard}"
        marker = store.read_marker(part)
        if marker is None:
            raise UserError(
                f"{store.path(embeddings_folder(self.name))}: no embeddings of shard {shard}; "
                f"run {HOW} first"
            )
        if self.config and not _same(marker.config, self.config):
            raise UserError(
                f"{store.path(part)}: embedded with other settings than the first shard; run {HOW} "
                "to recompute them"
            )
        rows, array = read_embeddings(store, part)
        good = [row.uid or "" for row in rows if row.status == OK]
        return {uid: number for number, uid in enumerate(good)}, array


def saved_images(store: Store, name: str) -> FrozenImages:
    """Return the embeddings of this name. Raises UserError if there are none."""
    have = store.folders(EMBEDDINGS)
    parts = store.parts(embeddings_folder(name)) if name in have else []
    marker = store.read_marker(parts[0]) if parts else None
    if marker is None:
        found = ", ".join(have) or "none"
        raise UserError(
            f"--embeddings {name}: not in {store.path(EMBEDDINGS)} (found {found}); run {HOW} first"
        )
    return FrozenImages(name, marker.config)


def encoder_of(images: FrozenImages, model: str, device: str = "auto") -> ImageEncoder:
    """Load the encoder that computed the embeddings, for images of evaluation sets.

    Raises UserError if there is no `model`, or if it is another one.
    """
    if images.is_embedded:
        return LiteTower()
    if not model:
        raise UserError(
            f"the evaluation sets have no features of {images.name} yet; pass --model, the scorer "
            f"that computed embeddings/{images.name}"
        )
    given = {"model": model, "device": device}
    given |= {one: images.config[one] for one in ("preprocess", "runtime") if one in images.config}
    encoder = make_scorer(make(ScoreSettings, given, "probe")).encoder
    if encoder.name != images.name or not _same(images.config, embedding_config(encoder)):
        raise UserError(
            f"--model {model}: its embeddings {encoder.name} are not those in "
            f"embeddings/{images.name} (other weights or preprocessing); pass the model that "
            "computed them"
        )
    return encoder


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return same_settings(dict(first), dict(second), DEFAULTS)
