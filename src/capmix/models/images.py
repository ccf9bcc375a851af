"""Decode untrusted image bytes to RGB, with limits on pixels, memory and time."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from capmix.models.jpeg import jpeg_frame, jpeg_size
from capmix.models.jpeg2000 import check_jpeg2000
from capmix.pool.formats import HEIC, JPEG_2000, TIFF, ImageFormat, format_of

# How images are decoded: by decode_image, or as by Image.open, for the transforms of open_clip.
Preprocess = Literal["capmix", "open_clip"]
MAX_PIXELS = 100_000_000
SCAN, EXIF = b"\xff\xda", b"Exif\0\0"
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
CMYK_COMPONENTS = 4
# Includes the segment's length and number of components, which libjpeg checks. The two bytes of
# SCAN by themselves occur in any large TIFF.
WHOLE_SCAN = re.compile(rb"\xff\xda\0(?:\x06\0|\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
LONGEST_ENLARGED = 4096  # pixels
SHORTEST_SCAN = 10  # bytes
MAX_SIDE = 65_535  # the limit of JPEG; the rows of a narrow PNG cost more than their pixels
MAX_EXIF_PARTS = 100  # segments in a JPEG; Pillow's time grows with the square of their number
MAX_SCANNED = 50 * MAX_PIXELS  # pixels in a progressive JPEG, where each scan visits every pixel
MAX_READS = 100_000  # read calls per file; Pillow reads each segment or chunk separately
MAX_TIMES_READ = 8  # average reads per byte; all tags of a TIFF may point to one large piece
SPARE_BYTES = 1 << 20
STRIP = 1 << 20  # pixels
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of a TIFF
ORIENTATION = 0x0112  # tag of EXIF; 1 is upright
# Decoding a JPEG at a scale that keeps twice the model's input side changes the input by less than
# one of 255 levels on average (benchmarks/decode.py).
SPARE = 2


class BadImageError(ValueError):
    """The bytes are not a supported image. `reason` is a code to count by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class _BoundedFile(io.BytesIO):
    """A file that raises ValueError when a decoder reads too many pieces or too many bytes."""

    left = MAX_READS
    exif_left = MAX_EXIF_PARTS

    def __init__(self, data: bytes):
        super().__init__(data)
        self.bytes_left = MAX_TIMES_READ * len(data) + SPARE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"the image has over {MAX_READS} pieces")
        data = super().read(size)
        self.bytes_left -= len(data)
        if self.bytes_left < 0:
            raise ValueError(f"the image refers to its bytes over {MAX_TIMES_READ} times")
        if data.startswith(EXIF):  # Pillow reads each segment in one call
            self.exif_left -= 1
            if self.exif_left < 0:
                raise ValueError(f"the image has over {MAX_EXIF_PARTS} Exif segments")
        return data


def decode_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    input_side: int | None = None,
    least_scale: int = 1,
) -> Image.Image:
    """Decode image bytes in any of pool.formats.FORMATS to an RGB image.

    The size is unchanged, with one exception: if `input_side` (the side of the model's input in
    pixels) is given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep at least
    SPARE times `input_side` pixels. Divisors below `least_scale` are not used.

    Applies EXIF orientation, uses the first frame of an animation, and puts transparent images on
    white. The size is read from the header and checked before any pixel is decoded.

    Raises BadImageError with reason `not_an_image`, `no_decoder` (a package is not installed),
    `too_many_pixels` or `broken_image`.
    """

    def convert(image: Image.Image) -> Image.Image:
        if input_side and image.format == "JPEG":
            width, height = image.size
            scale = spare_scale(image.size, input_side)
            if scale >= least_scale:
                image.draft(None, (width // scale, height // scale))
        ImageOps.exif_transpose(image, in_place=True)  # a copy would take 4 bytes per pixel
        return _to_rgb(image)

    return _decode(data, max_pixels, convert)


def decode_as_stored(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB like webdataset's `pilrgb`, which open_clip's trainer and CLIP_benchmark use.

    EXIF orientation and transparency are ignored. Limits and errors are the same as for
    decode_image.
    """
    return _decode(data, max_pixels, lambda image: image.convert("RGB"))


def decode_unconverted(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode as `Image.open` does: at full size, as stored, in the file's own mode.

    Use it for open_clip's transforms, which resize before they convert to RGB. Limits and errors
    are the same as for decode_image.
    """

    def load(image: Image.Image) -> Image.Image:
        image.load()
        return image

    return _decode(data, max_pixels, load)


def check_resized(size: tuple[int, int], side: int | None, max_pixels: int = MAX_PIXELS) -> None:
    """Raise BadImageError if resizing the shorter side to `side` would exceed `max_pixels`.

    CLIP's transforms resize the shorter side, so an image of 1 x 60,000 pixels becomes one of
    billions. Set `side` to None for transforms that limit the longer side.
    """
    shorter, longer = sorted(size)
    if side is not None and side * side * longer // max(1, shorter) > max_pixels:
        detail = f"{size[0]} x {size[1]} pixels with the shorter side resized to {side}"
        raise BadImageError("too_many_pixels", f"{detail} exceed the limit of {max_pixels}")


def spare_scale(size: tuple[int, int], input_side: int) -> int:
    """Return the largest divisor in 8, 4, 2, 1 that keeps SPARE times `input_side` on both sides.

    A divisor must divide both sides exactly: otherwise the scaled image is shifted.
    """
    width, height = size
    return next(
        s
        for s in (8, 4, 2, 1)
        if s == 1 or (min(size) >= s * SPARE * input_side and width % s == height % s == 0)
    )


def enlarged(image: Image.Image, smallest: int) -> Image.Image:
    """Scale an image up if its shorter side has less than `smallest` pixels.

    The longer side is bounded by LONGEST_ENLARGED pixels.
    """
    scale = smallest / min(image.size)
    if scale <= 1:
        return image
    width, height = (min(LONGEST_ENLARGED, round(side * scale)) for side in image.size)
    return image.resize((width, height))


def plain_jpeg_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """Return width and height of a JPEG that decode_image decodes without converting the pixels.

    Such a JPEG is grey or RGB, upright, and ends with the end marker. Returns None for all other
    images: transparent, CMYK, rotated by EXIF, truncated, of other formats. The result does not
    mean that the pixels can be decoded.

    Raises BadImageError if the header is broken or exceeds the limits of decode_image.
    """
    if not (data.startswith(JPEG_START) and data.endswith(JPEG_END)):
        return None
    frame = jpeg_frame(data)
    if frame is not None:
        pixels = frame.width * frame.height
        most_scans = len(data) // SHORTEST_SCAN  # counting takes longer than the rest
        if pixels * most_scans > MAX_SCANNED:
            most_scans = data.count(SCAN)
        is_small = pixels <= max_pixels and pixels * most_scans <= MAX_SCANNED
        return frame[:2] if is_small and frame.components != CMYK_COMPONENTS else None
    image = _open_bounded(data, max_pixels)
    with _only_bad_images(image):
        is_upright = image.getexif().get(ORIENTATION, 1) == 1
    is_plain = image.format == "JPEG" and image.mode in ("L", "RGB") and is_upright
    return image.size if is_plain else None


def image_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels as stored, from the header. Raises BadImageError."""
    size: tuple[int, int] = jpeg_size(data) or _open(data).size
    return size


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, int, int]:
    """Return the format as Pillow names it (JPEG, PNG, HEIF, ...), and width and height in pixels.

    Width and height are as stored. Limits are the same as for decode_image, but no pixel is
    decoded, so the data after the header may be broken.

    Raises BadImageError with reason `not_an_image`, `no_decoder` or `too_many_pixels`.
    """
    image = _open_bounded(data, max_pixels)
    kind = "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs
    return str(kind), image.width, image.height


def _open_bounded(data: bytes, max_pixels: int) -> Image.Image:
    image = _open(data)
    _check_size(image.size, max_pixels)
    width, height = image.size
    is_tiff = image.format == TIFF.kind
    has_scans = "progressive" in image.info or is_tiff
    most = MAX_SCANNED // max(1, width * height)
    scans = _count_scans(data, most) if has_scans else 1
    if scans > most:
        detail = f"{width} x {height} pixels in {scans} scans"
        raise BadImageError("too_many_pixels", detail)
    if image.format == JPEG_2000.kind:
        try:
            check_jpeg2000(data)
        except ValueError as error:
            raise BadImageError("too_many_pixels", str(error)) from error
    if is_tiff:
        with _only_bad_images(image):
            tags = image.tag_v2  # type: ignore[attr-defined]
            tile = _side(tags.get(TILE_WIDTH, 1)), _side(tags.get(TILE_LENGTH, 1))
        _check_size(tile, max_pixels, "a tile of ")
    return image


def _count_scans(data: bytes, enough: int) -> int:
    """Return an upper bound on the number of JPEG scans.

    If at most `enough` byte pairs could begin a scan, their number is returned; otherwise only
    complete scan headers are counted.
    """
    found = data.count(SCAN)
    return found if found <= enough else sum(1 for _ in WHOLE_SCAN.finditer(data))


def _side(value: Any) -> int:
    """Check a side from a TIFF tag, which may have any type. Raises ValueError."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"the side of a tile is {value!r:.80}; expected a whole number of pixels")
    return value


def _check_size(size: tuple[int, int], max_pixels: int, what: str = "") -> None:
    width, height = size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        bounds = f"{max_pixels} pixels or {MAX_SIDE} per side"
        detail = f"{what}{width} x {height} pixels exceeds the limit of {bounds}"
        raise BadImageError("too_many_pixels", detail)


def _decode(
    data: bytes, max_pixels: int, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    image = _open_bounded(data, max_pixels)
    with _only_bad_images(image):
        return convert(image)


@contextlib.contextmanager
def _only_bad_images(image: Image.Image) -> Iterator[None]:
    """Turn any exception of a decoder into BadImageError, and suppress its warnings."""
    what = f"{image.format} {image.width} x {image.height}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except BadImageError:
            raise
        except Exception as error:
            raise BadImageError("broken_image", f"{what}: {error}") from error


def _open(data: bytes) -> Image.Image:
    kind = format_of(data)
    if kind is None:
        detail = f"{len(data)} bytes starting with {data[:16]!r}: not a supported image format"
        raise BadImageError("not_an_image", detail)
    if not kind.is_readable:
        detail = f"{kind.name} needs a decoder: {kind.install}, then rerun with --retry-failed"
        raise BadImageError("no_decoder", detail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the limits above replace Pillow's bomb warning
        try:
            return _opened(_BoundedFile(data), kind)
        except Image.DecompressionBombError as error:
            raise BadImageError("too_many_pixels", str(error)) from error
        except Exception as error:  # Pillow's plugins raise various types on malicious bytes
            is_unknown = isinstance(error, UnidentifiedImageError)
            why = "the header cannot be read" if is_unknown else error
            detail = f"{len(data)} bytes that start like {kind.name}: {why}"
            raise BadImageError("not_an_image", detail) from error


def _opened(file: io.BytesIO, kind: ImageFormat) -> ImageFile.ImageFile:
    if kind is HEIC:
        # Use the class directly: a registered plugin would affect all code in the process.
        from pillow_heif import HeifImageFile

        image: ImageFile.ImageFile = HeifImageFile(file)
        return image
    return Image.open(file, formats=(kind.kind,))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit grey to white; keep the high byte instead.
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        return _stretched(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _stretched(image: Image.Image) -> Image.Image:
    """Convert 32-bit grey, whose range is not declared by any format.

    Its smallest value becomes black, its largest white.
    """
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")


def _on_white(image: Image.Image) -> Image.Image:
    """Composite onto white, in strips, as each intermediate image takes 4 bytes per pixel."""
    whole = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        whole.paste(Image.alpha_composite(white, strip).convert("RGB"), box[:2])
    return whole
