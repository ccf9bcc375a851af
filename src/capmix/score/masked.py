"""Score images without their text: T-MARS, arXiv 2307.03132.

The pool is read with the text boxes of an annotation filled (see models/text_mask.py), and scored
by the same scorer, as `<scorer>-masked`. Images without text are passed on unchanged, so that both
scores are the same.
"""

import io
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.image_pass import ImageEncoder
from capmix.models.images import BadImageError, decode_image
from capmix.models.text_mask import without_text
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.score.scorer import Scorer
from capmix.storage.layout import annotation_folder
from capmix.storage.names import MASKED
from capmix.storage.rows import OK
from capmix.storage.store import Store

# The detector failed at decoding the image. The scorer does so too, and its row has the reason.
NOT_DECODED = ("not_an_image", "no_decoder", "broken_image", "too_many_pixels")


@dataclass(frozen=True)
class TextBoxes:
    """The text boxes of a pool's images, from the annotation `name`."""

    store: Store
    name: str

    @property
    def folder(self) -> str:
        """The folder of the annotation's parts."""
        return annotation_folder(self.name)

    def noted(self, stage: Stage) -> Stage:
        """Return a stage that reads images, with the boxes among its inputs."""

        def inputs(shard: Shard) -> dict[str, str]:
            self._check(shard)
            return stage.inputs(shard) | {self.folder: self.store.fingerprint(self._part(shard))}

        return replace(stage, inputs=inputs, reads=(*stage.reads, self.folder))

    def of(self, shard: Shard) -> dict[str, np.ndarray | BadSample]:
        """Return the boxes of a shard's images by uid, int32 (N, 4, 2).

        For an image that the detector failed on, it is a BadSample. Raises UserError if the shard
        has no boxes.
        """
        self._check(shard)
        columns = ["uid", "key", "status", "reason", "detail", "corners"]
        table = self.store.read_table(f"{self._part(shard)}.parquet", columns)
        found: dict[str, np.ndarray | BadSample] = {}
        for row in table.to_pylist():
            if row["status"] == OK:
                found[row["uid"]] = np.array(row["corners"], np.int32).reshape(-1, 4, 2)
            elif row["uid"] is not None and row["reason"] not in NOT_DECODED:
                found[row["uid"]] = BadSample(row["key"], row["reason"], row["detail"])
        return found

    def _part(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}"

    def _check(self, shard: Shard) -> None:
        marker = self.store.read_marker(self._part(shard))
        if marker is None or "detector" not in marker.config:
            raise UserError(
                f"--mask {self.name}: {self.store.path(self.folder)} has no text boxes of shard "
                f"{shard.name}; run `capmix annotate --method text_area --name {self.name}` first"
            )
        if marker.inputs.get("pool") != shard.fingerprint:
            raise UserError(
                f"--mask {self.name}: shard {shard.name} has changed since its text boxes were "
                f"found; rerun `capmix annotate --method text_area --name {self.name}`"
            )


@dataclass(frozen=True)
class MaskedPool:
    """A pool whose images are read with their text boxes filled."""

    pool: ImagePool
    boxes: TextBoxes

    @property
    def is_folder(self) -> bool:
        """See Pool."""
        return self.pool.is_folder

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        """Stream the samples of a shard; see Pool. A filled image is a PNG."""
        boxes = self.boxes.of(shard)
        for sample in self.pool.read(shard, keys):
            yield sample if isinstance(sample, BadSample) else _masked(sample, boxes)


def _masked(sample: Sample, boxes: dict[str, np.ndarray | BadSample]) -> Sample | BadSample:
    found = boxes.get(sample.uid)
    if isinstance(found, BadSample):
        return found
    if found is None or not len(found):
        return sample
    try:
        return replace(sample, image=masked_png(sample.image, found), suffix="png")
    except BadImageError:
        return sample


def masked_png(image: bytes, boxes: np.ndarray) -> bytes:
    """Return a PNG of an image with its text boxes, int32 (N, 4, 2), filled.

    Raises BadImageError.
    """
    out = io.BytesIO()
    without_text(decode_image(image), boxes).save(out, "PNG", compress_level=1)
    return out.getvalue()


def masked_scorer(scorer: Scorer, boxes: TextBoxes) -> Scorer:
    """Return the scorer of masked images: its scores and embeddings have names of their own."""
    return cast(Scorer, _MaskedScorer(scorer, boxes))


class _Renamed:
    """The members of a model, under the name of the model with a suffix."""

    def __init__(self, model: Any):
        self._model = model
        self.name = f"{model.name}{MASKED}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class _MaskedScorer(_Renamed):
    def __init__(self, scorer: Scorer, boxes: TextBoxes):
        super().__init__(scorer)
        self.encoder = cast(ImageEncoder, _Renamed(scorer.encoder))
        self.settings = {**scorer.settings, "mask": boxes.name}
