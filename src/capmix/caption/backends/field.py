"""`field:NAME`: captions from a field of the samples' JSON instead of a model."""

from collections.abc import Sequence
from typing import Any, ClassVar

from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.pool import Sample

PREFIX = "field:"


class FieldCaptioner:
    """Uses the text of a field as the caption; a list of strings is joined with ", "."""

    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "cpu"
    needs_images: ClassVar[bool] = False
    batch_size, workers = 256, 2

    def __init__(self, settings: CaptionSettings, source: str = ""):
        self._field = settings.model.removeprefix(PREFIX)
        if not self._field:
            raise UserError(f"captioner {settings.model}: expected field:NAME, such as field:tags")
        self.settings: dict[str, Any] = {"model": settings.model}
        self.provenance: dict[str, Any] = {}

    def prepare(self, sample: Sample) -> Caption:
        value = sample.metadata.get(self._field)
        if isinstance(value, list):
            value = ", ".join(item for item in value if isinstance(item, str))
        return Caption(str(value or "").strip())

    def caption(
        self, prepared: Sequence[Caption], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        """Return the captions that `prepare` read."""
        return [[one] for one in prepared]
