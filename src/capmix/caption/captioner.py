"""The captioner protocols: models that write captions for images.

A `Captioner` reads image embeddings that an encoder has saved (the embedded models). An
`ImageCaptioner` reads the images themselves (all other models).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from capmix.models.image_pass import ImageEncoder
from capmix.pool import Sample


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption. `finish` is `stop`, or `length` if the caption was truncated."""

    text: str
    finish: str = "stop"


class Captioner(Protocol):
    """A model that writes captions from image embeddings.

    Caption k of an image depends only on the image, (seed, uid, source, k) and the settings.
    `settings` contains the model, a digest of its weights and every sampling setting. It is written
    to the marker of each part and determines whether the part is up to date.
    """

    settings: dict[str, Any]

    @property
    def encoder(self) -> ImageEncoder:
        """The image encoder whose embeddings the captioner reads."""
        ...

    def caption(
        self, embeddings: np.ndarray, uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        """Return K captions for each of N images, from float16 (N, dimensions) embeddings."""
        ...


class ImageCaptioner(Protocol):
    """A model that writes captions from images.

    Caption k depends on the same inputs as for a `Captioner`.

    `batch_size` images are captioned at once. `workers` threads run `prepare` ahead of the model.
    A captioner whose batches need not end together may have a method
    `stream(images, source, batches, busy)`, which stream.py then calls instead of `caption`.

    A captioner that calls a server in `prepare` may accept `prepare(sample, first=0)`. A captioner
    that reads only the image of a sample sets `of_image_alone = True`: its captions are kept when
    other parts of the sample change.
    """

    settings: dict[str, Any]
    batch_size: int
    workers: int

    def prepare(self, sample: Sample) -> Any:
        """Preprocess one image. Raises BadImageError if it cannot be decoded."""
        ...

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        """Return K captions for each of N prepared images. A failing batch is retried in halves.

        `uids` seed the random draws: the samples' uids, or a digest of the image if the pool has no
        uids of its own (Sample.draw_name). With `first`, return only captions `first` to K - 1,
        because the earlier ones exist. A captioner without this parameter rewrites all K.
        """
        ...
