"""Caption with an OpenAI-compatible server: vLLM, SGLang, llama.cpp or a hosted API.

The model is `server:URL` or `server:URL#MODEL`, where URL ends in /v1. JPEG, PNG and WebP images
up to `max_side` are uploaded unchanged. Requests run in the threads that prepare samples, which
keeps `concurrency` requests in flight. See chat_client.py for retries.
"""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from PIL import Image

from capmix.caption.backends.chat_client import ChatClient
from capmix.caption.captioner import Caption
from capmix.caption.prompts import caption_prompts
from capmix.caption.settings import CaptionSettings
from capmix.engine.memory import WeightedSemaphore, release_freed
from capmix.models.images import MAX_PIXELS, MAX_SIDE, decode_image, read_header
from capmix.pool import Sample

PROMPT = "Describe this image in one sentence."
MAX_DECODING = MAX_PIXELS  # total pixels of all threads; a pixel takes up to 20 bytes
DECODERS = 4  # threads, independent of concurrency: malloc retains freed memory per thread
SENT_UNCHANGED = ("JPEG", "PNG", "WEBP")


class ServerCaptioner:
    """Sends images to a server. Raises UserError if it is unreachable or lacks the model."""

    extra: ClassVar[str | None] = None
    packages: ClassVar[tuple[str, ...]] = ()
    device: ClassVar[str] = "remote"
    needs_images: ClassVar[bool] = True
    takes_templates: ClassVar[bool] = True

    def __init__(self, settings: CaptionSettings, source: str = ""):
        self._wanted = settings
        self._prompts = caption_prompts(settings.prompt, PROMPT)
        self.prompt, self.of_image_alone = self._prompts.recorded, not self._prompts.has_fields
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        self._decoding = WeightedSemaphore(MAX_DECODING)
        test = _content(_blank(), self._prompts.texts[0])
        self._client = ChatClient(settings, source, "captioner", test)
        self.workers = self.batch_size = settings.concurrency
        self.settings = self._client.settings(**self._prompts.marker, max_side=settings.max_side)
        self.provenance: dict[str, Any] = {}

    def prepare(self, sample: Sample, first: int = 0) -> list[Caption]:
        """Request captions `first` to K - 1 of one image.

        Raises BadImageError, and SampleError if the request fails or a text of the prompt is
        missing.
        """
        each = self._wanted.captions_per_image
        prompts = self._prompts.of(sample)
        url = _data_url(*self._upload(sample))
        captions: list[Caption] = []
        for number, prompt in enumerate(prompts):
            numbers = range(max(first, number * each), (number + 1) * each)
            captions += self._client.texts(
                _content(url, prompt or self._prompts.texts[0]), sample.draw_name, numbers
            )
        if first == 0:
            self._client.check_any(captions)
        return captions

    def caption(
        self,
        prepared: Sequence[list[Caption]],
        uids: Sequence[str],
        source: str,
        first: int = 0,
    ) -> list[list[Caption]]:
        """Return the captions that `prepare` requested."""
        return list(prepared)

    def _upload(self, sample: Sample) -> tuple[str, bytes]:
        """Return the format and the bytes to upload.

        These are the image's own bytes, of which only the header is checked. Images larger than
        `max_side`, or in formats that some servers cannot read, are converted to JPEG.
        """
        kind, width, height = read_header(
            sample.image
        )  # raises BadImageError if it is not an image
        side = self._wanted.max_side or MAX_SIDE
        if kind in SENT_UNCHANGED and max(width, height) <= side:
            return kind, sample.image
        with self._decoding.held(width * height):
            data = self._decoders.submit(_downscaled, sample.image, side).result()
            if width * height > MAX_DECODING // DECODERS:
                release_freed()
        return "JPEG", data


def _content(image_url: str, prompt: str | None) -> list[dict[str, Any]]:
    """Return the content of the message of the user."""
    return [
        {"type": "image_url", "image_url": {"url": image_url}},
        {"type": "text", "text": prompt},
    ]


def _blank() -> str:
    """Return the URL of a blank image."""
    blank = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(blank, "PNG")
    return _data_url("PNG", blank.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


def _downscaled(data: bytes, side: int) -> bytes:
    image = decode_image(data)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()
