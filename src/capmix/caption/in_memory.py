"""Caption images in memory, without a pool or a work directory."""

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from capmix.caption.captioner import Caption
from capmix.caption.captioners import make_captioner
from capmix.caption.prompts import caption_prompts
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage, streamed
from capmix.engine.batches import Batches, SampleError
from capmix.engine.busy import Busy
from capmix.errors import UserError
from capmix.models.image_pass import prepared_image
from capmix.models.images import BadImageError
from capmix.models.known import chosen_model
from capmix.models.registry import CAPTIONERS
from capmix.pool import Sample
from capmix.settings.base import changed, make, options_of, with_options
from capmix.storage.compare import changes
from capmix.storage.layout import CAPTIONS, captions_folder
from capmix.storage.names import no_captions
from capmix.storage.store import Store

Image = PIL.Image.Image | bytes | str | Path
SOURCE = "image"
# Settings that affect caption text and are recorded in markers. `language` affects only flags.
RECORDED = {"model", "revision", "prompt", "max_side", *CaptionSettings().sampling()}
log = logging.getLogger(__name__)


@with_options(CaptionSettings)
def caption_images(
    images: Sequence[Image], settings: CaptionSettings | None = None, **options: Any
) -> list[Any]:
    """Caption PIL images, encoded images or image files; return one text per image.

    With several captions per image, returns a list of texts per image. An image that cannot be
    captioned yields None, and a warning with the reason is logged. A caption depends only on the
    image's bytes and the settings. `options` override `settings`.

    Raises UserError if the model cannot be loaded, or if `language` is set: captions are returned
    without flags.
    """
    chosen = _chosen(settings or CaptionSettings(), options)
    return _caption_all(make_captioner(chosen, SOURCE), chosen, SOURCE, images)


def caption_like(store: Store, source: str, images: Sequence[Image], **options: Any) -> list[Any]:
    """Caption images with the model and the sampling settings recorded for a source.

    `options` override the recorded settings. Raises UserError if the source has no captions, if
    they were not written by a model, or, without `options`, if the loaded model is a different one.
    """
    part = next(iter(store.parts(captions_folder(source))), None)
    marker = store.read_marker(part) if part is not None else None
    if marker is None:
        raise UserError(no_captions(source, store.folders(CAPTIONS)))
    if "model" not in marker.config:
        raise UserError(
            f"caption_images: the captions of {source!r} were not written by a model; pass model="
        )
    names = options_of(CaptionSettings)
    noted = {name: marker.config[name] for name in RECORDED & marker.config.keys() & names.keys()}
    noted["model"] = marker.provenance.get("run", noted["model"])
    chosen = _chosen(make(CaptionSettings, noted, "caption_images"), options)
    captioner = make_captioner(chosen, source)
    other = changes(_of_model(marker.config), _of_model(captioner.settings), {})
    if other and not options:
        raise UserError(
            f"caption_images: the captions of {source!r} were written by another model: "
            f"{'; '.join(other)}"
        )
    return _caption_all(captioner, chosen, source, images)


def _of_model(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings.get(name) for name in ("model", "weights", "revision")}


def _caption_all(
    captioner: Any, chosen: CaptionSettings, source: str, images: Sequence[Image]
) -> list[Any]:
    if not getattr(captioner, "needs_images", True):
        raise UserError(f"caption_images: {chosen.model} reads the pool's metadata, not images")
    _check_fields(captioner, chosen)
    running = Running(source, Batches(chosen.batch_timeout), Busy())
    found: list[Any] = [None] * len(images)
    is_several = chosen.captions_per_image > 1 or isinstance(chosen.prompt, list)
    for some in streamed(_captioner_of(captioner), _ready(captioner, images), running):
        for image in some:
            if image.error is not None:
                log.warning("image %d: %s", image.about, image.error)
                continue
            texts = [caption.text for caption in image.captions]
            found[image.about] = texts if is_several else texts[0]
    return found


def _check_fields(captioner: Any, chosen: CaptionSettings) -> None:
    """Raise UserError if a prompt requires a text: images in memory have none."""
    if not getattr(captioner, "takes_templates", False):
        return
    if names := caption_prompts(chosen.prompt).required:
        raise UserError(
            f"caption_images: prompt: images in memory have no {', '.join(names)}; put what "
            "requires it into [[ ]]"
        )


def _ready(captioner: Any, images: Sequence[Image]) -> Iterator[StreamedImage]:
    """Yield the prepared images, and log those that cannot be prepared."""
    for number, image in enumerate(images):
        try:
            sample = _sample(number, image)
            yield StreamedImage(_prepared(captioner, sample), sample.uid, about=number)
        except (BadImageError, SampleError, OSError) as error:
            log.warning("image %d: %s", number, error)


def _chosen(settings: CaptionSettings, options: Mapping[str, Any]) -> CaptionSettings:
    chosen = changed(settings, options, "caption_images")
    named = chosen_model(CAPTIONERS, chosen.model, None, "caption_images", "model=")
    chosen = chosen.model_copy(update={"model": named})
    if chosen.language is not None:
        raise UserError(
            "caption_images: language: only sets flags, which are not returned; omit this option"
        )
    return chosen


def _sample(number: int, image: Image) -> Sample:
    if isinstance(image, PIL.Image.Image):
        out = io.BytesIO()
        image.save(out, "PNG")
        data = out.getvalue()
    else:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
    uid = hashlib.sha256(data).hexdigest()[:32]
    suffix = "png" if isinstance(image, PIL.Image.Image) else _suffix(data)
    return Sample(str(number), uid, data, suffix, None)


def _suffix(data: bytes) -> str:
    starts = {b"\x89PNG": "png", b"RIFF": "webp"}
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), "jpg")


def _prepared(captioner: Any, sample: Sample) -> Any:
    if hasattr(captioner, "encoder"):
        return prepared_image(sample.image, captioner.encoder)
    return captioner.prepare(sample)


@dataclass(frozen=True)
class _OfPixels:
    """A captioner that needs the vectors of images, as one that gets their pixels."""

    captioner: Any
    batch_size: int = 32

    def caption(
        self, prepared: Sequence[Any], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        vectors = self.captioner.encoder.encode_pixels(prepared)
        captions: list[list[Caption]] = self.captioner.caption(vectors, uids, source)
        return captions


def _captioner_of(captioner: Any) -> Any:
    return _OfPixels(captioner) if hasattr(captioner, "encoder") else captioner
