"""A captioner that returns hashes, and records every requested caption of this process."""

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.models.images import read_header
from capmix.pool import Sample

MODEL = "counting_captioner:CountingCaptioner"
OLD_MODEL = "counting_captioner:OldCaptioner"
KILLED_MODEL = "counting_captioner:KilledCaptioner"


class CountingCaptioner:
    """Caption k depends only on the image, the name that keys the random draws, and k."""

    device = "cpu"
    of_image_alone = True
    asked: ClassVar[list[tuple[str, int]]] = []
    empty: ClassVar[set[int]] = set()  # indices of captions that are empty
    failing: ClassVar[set[int]] = set()  # indices of captions whose batch fails

    def __init__(self, settings: CaptionSettings, source: str = ""):
        self._wanted = settings
        self.batch_size, self.workers = 4, 2
        self.settings: dict[str, Any] = {"model": settings.model, **settings.sampling()}

    def prepare(self, sample: Sample) -> str:
        return hashlib.sha256(sample.image).hexdigest()[:8]

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        found: list[list[Caption]] = []
        for image, uid in zip(prepared, uids, strict=True):
            numbers = range(first, self._wanted.captions_per_image)
            if self.failing & set(numbers):
                raise ValueError("no such caption")
            self.asked += [(image, k) for k in numbers]
            texts = (f"image {image} drawn {uid[:8]} {k}" for k in numbers)
            found.append(
                [Caption("" if k in self.empty else t) for k, t in zip(numbers, texts, strict=True)]
            )
        return found


class OldCaptioner(CountingCaptioner):
    """A captioner without the argument `first`, as third-party packages may have."""

    of_image_alone = False

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        return super().caption(prepared, uids, source)


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it."""


class KilledCaptioner(CountingCaptioner):
    """The process ends in the batch after `left` batches. Images that are none fail."""

    left: ClassVar[int] = 10**9

    def prepare(self, sample: Sample) -> str:
        read_header(sample.image)
        return super().prepare(sample)

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str, first: int = 0
    ) -> list[list[Caption]]:
        if not self.left:
            raise KilledError
        KilledCaptioner.left -= 1
        return super().caption(prepared, uids, source, first)
