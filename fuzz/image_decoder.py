"""Fuzz the image decoders: decode_image, at full and reduced scale, and decode_as_stored.

Invariants: for any bytes, the result is an RGB image of at most MAX_PIXELS, or BadImageError with a
known reason, within 2 GiB of memory and 20 seconds.

    python fuzz/image_decoder.py --seconds 600
    python fuzz/image_decoder.py fuzz/found/image_decoder-crash-...
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import atheris
from harness import fuzz

with atheris.instrument_imports(include=["capmix", "PIL"]):
    from PIL import (  # noqa: F401  # Pillow would import these at the first image
        Image,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    from capmix.models.images import MAX_PIXELS, BadImageError, decode_as_stored, decode_image

PNG = b"\x89PNG\r\n\x1a\n"
REASONS = ("not_an_image", "no_decoder", "too_many_pixels", "broken_image")
SIZE = (21, 13)


def check(data: bytes) -> None:
    for decode in (decode_image, lambda one: decode_image(one, input_side=2), decode_as_stored):
        check_one(decode, data)


def check_one(decode: Callable[[bytes], Image.Image], data: bytes) -> None:
    try:
        image = decode(data)
    except BadImageError as error:
        if error.reason not in REASONS:
            raise AssertionError(error.reason) from error
        return
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate data; usually correct the checksums of PNG chunks, as decoders stop at a wrong one."""
    data = atheris.Mutate(data, max_size)
    if not data.startswith(PNG) or random.Random(seed).random() < 0.1:  # noqa: S311
        return data
    start = len(PNG)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        data = data[:end] + struct.pack(">I", zlib.crc32(data[start + 4 : end])) + data[end + 4 :]
        start = end + 4
    return data[:max_size]


def seeds() -> Iterator[bytes]:
    yield from (b"", b"<!doctype html>", b"GIF89a\x01\x00\x01\x00")
    noise = random.Random(0).randbytes(4 * SIZE[0] * SIZE[1])  # noqa: S311
    rgba = Image.frombytes("RGBA", SIZE, noise)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (rgb, grey, rgb.convert("CMYK")):
        yield from (encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True))
    yield encoded(rgb, "JPEG", exif=exif, icc_profile=b"profile", comment=b"text", dpi=(72, 72))
    yield encoded(rgb, "JPEG", subsampling=2, restart_marker_blocks=1, quality=20)
    yield encoded(rgb, "MPO", save_all=True, append_images=[rgb])
    sixteen = Image.frombytes("I;16", SIZE, noise[: 2 * SIZE[0] * SIZE[1]])
    for image in (rgb, rgba, grey, rgba.convert("LA"), grey.convert("1"), sixteen):
        yield encoded(image, "PNG")
    yield encoded(rgb.quantize(7), "PNG", transparency=b"\0\x80", bits=4)
    yield encoded(grey, "PNG", transparency=3)
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "text", zip=True)
    text.add_itxt("key", "text", "en", "key", zip=True)
    yield encoded(rgb, "PNG", exif=exif, icc_profile=b"profile", pnginfo=text, dpi=(72, 72))
    yield encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)], duration=9)
    yield from (interlaced(0, 8), interlaced(0, 16), interlaced(6, 8))
    for image in (rgb, rgba):
        yield from (encoded(image, "WEBP", quality=50), encoded(image, "WEBP", lossless=True))
    yield encoded(rgb, "WEBP", exif=exif, icc_profile=b"profile", xmp=b"<x/>")
    yield encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(180)], duration=9)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def interlaced(colour: int, bits: int) -> bytes:
    """Return an interlaced (Adam7) PNG of 1 x 1 pixel; Pillow cannot write interlaced PNGs."""
    header = struct.pack(">IIBBBBB", 1, 1, bits, colour, 0, 0, 1)
    pixel = bytes(1 + (4 if colour == 6 else 1) * bits // 8)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixel)), (b"IEND", b""))
    return PNG + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


if __name__ == "__main__":
    fuzz(__doc__, check, seeds(), max_bytes=8192, custom_mutator=mutate)
