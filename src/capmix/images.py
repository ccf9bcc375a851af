"""Decode untrusted image bytes into RGB, within stated bounds."""

import io
import warnings
from collections.abc import Callable

from PIL import Image, ImageOps

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000
# Decoding a JPEG at a scale that leaves twice the model's input side changes the input by less
# than one level of 255 on average (benchmarks/decode.py).
SPARE = 2


class BadImageError(ValueError):
    """The bytes are not an image that capmix reads. `reason` is a short word to count by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, input_side: int | None = None
) -> Image.Image:
    """Decode JPEG, PNG or WebP bytes to an RGB image.

    The image has its own size; but where `input_side`, the side of the model's input in pixels, is
    given, a JPEG is decoded at 1/2, 1/4 or 1/8 if both sides keep SPARE times `input_side`.

    EXIF orientation is applied, the first frame of an animation is taken, and transparency
    is laid on white. The size is read from the header and checked before any pixel is decoded.

    Raises BadImageError with reason `not_an_image`, `too_many_pixels` or `broken_image`.
    """

    def convert(image: Image.Image) -> Image.Image:
        if input_side and image.format == "JPEG":
            width, height = image.size
            scale = _spare_scale(width, height, SPARE * input_side)
            image.draft(None, (width // scale, height // scale))
        return _to_rgb(ImageOps.exif_transpose(image))

    return _decode(data, max_pixels, convert)


def decode_as_stored(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB as webdataset's `pilrgb`, and so open_clip's trainer and CLIP_benchmark, do.

    Pixels alone: neither EXIF orientation nor transparency counts. Bounds and errors are those of
    decode_image.
    """
    return _decode(data, max_pixels, lambda image: image.convert("RGB"))


def _decode(
    data: bytes, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own bound below replaces Pillow's bomb warning
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except Image.DecompressionBombError as error:
            raise BadImageError("too_many_pixels", str(error)) from error
        except Exception as error:  # Pillow's plugins raise many types on hostile bytes
            start = data[:16]
            detail = f"{len(data)} bytes starting {start!r} are not JPEG, PNG or WebP"
            raise BadImageError("not_an_image", detail) from error
        width, height = image.size
        if width * height > max_pixels:
            detail = f"{width} x {height} pixels is over the bound of {max_pixels}"
            raise BadImageError("too_many_pixels", detail)
        try:
            return convert(image)
        except Exception as error:
            raise BadImageError(
                "broken_image", f"{image.format} {width} x {height}: {error}"
            ) from error


def _spare_scale(width: int, height: int, needed: int) -> int:
    """The largest scale that keeps `needed` pixels a side. Only whole quotients: others shift."""
    return next(
        s
        for s in (8, 4, 2, 1)
        if s == 1 or (min(width, height) >= s * needed and width % s == height % s == 0)
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow clips 16-bit grey to white on conversion; keep the high byte instead.
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")
