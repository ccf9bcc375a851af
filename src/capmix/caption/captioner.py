"""What a captioner is: a model that writes captions for images it sees through an encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from capmix.embed import ImageEncoder


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
