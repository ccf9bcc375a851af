"""What a captioner is: a model that writes captions for images.

`Captioner` sees images through an encoder whose embeddings are kept (the embedded models);
`ImageCaptioner` sees the images themselves (everything else).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from capmix.models.image_pass import ImageEncoder
from capmix.pool import Sample


@dataclass(frozen=True, slots=True)
class Caption:
    """One caption. `finish` says why it ended: `stop`, or `length` where it was cut."""

    text: str
    finish: str = "stop"


class Captioner(Protocol):
    """Writes captions. Caption k of an image depends on (seed, uid, source, k) and settings alone.

    `settings` names the model, a digest of its weights and every sampling setting; it goes into
    the marker of each part and decides whether the part is up to date.
    """

    settings: dict[str, Any]

    @property
    def encoder(self) -> ImageEncoder:
        """The model that the captioner sees images through."""
        ...

    def caption(
        self, embeddings: np.ndarray, uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        """The captions of N images, K each, from their float16 (N, dimensions) embeddings."""
        ...


class ImageCaptioner(Protocol):
    """Writes captions from images. Its promise about caption k is the Captioner's.

    `batch_size` images are captioned at once; `workers` threads run `prepare` ahead of the model.
    A captioner that asks a server in `prepare` may have `prepare(sample, first=0)`. One that reads
    nothing of a sample but its image says so with `of_image_alone = True`: its captions are kept
    where only the rest of the sample has changed.
    """

    settings: dict[str, Any]
    batch_size: int
    workers: int

    def prepare(self, sample: Sample) -> Any:
        """The processor's part for one image. Raises BadImageError."""
        ...

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        """The captions of N prepared images, K each. A failing batch is tried again in halves.

        `uids` key the draws: the samples' uids, or a digest of the image where the pool has no uid
        of its own (Sample.draw_name). Where captions exist, those from number `first` on, K - first
        each; a captioner without that parameter writes all K again.
        """
        ...
