"""Images of every format that capmix reads, and decompression bombs of some."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

COD, SIZ, IHDR = b"\xff\x52", b"\xff\x51", b"ihdr"
KINDS = {  # by suffix
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "avif": "AVIF", "bmp": "BMP", "gif": "GIF",
    "heic": "HEIF", "jp2": "JPEG2000", "tif": "TIFF",
}  # fmt: skip


def picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    grid = np.random.default_rng(5).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, suffix: str, **options: object) -> bytes:
    """Return the bytes of an image; skip the test if it needs pillow-heif, which is missing."""
    out = io.BytesIO()
    if suffix == "heic":
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(image).save(out, **options)
    else:
        image.save(out, KINDS[suffix], **options)
    return out.getvalue()


def hollow_jp2(mode: str, side: int, **blocks: int) -> bytes:
    """Return a JPEG 2000 of some 250 bytes whose header declares `side` pixels.

    `width` is the exponent of its code blocks minus 2, `precinct` the exponent of its precincts.
    """
    data = bytearray(encoded(Image.new(mode, (16, 16)), "jp2"))
    at, box = data.index(SIZ), data.index(IHDR)
    both = struct.pack(">II", side, side)
    data[at + 6 : at + 14] = data[at + 22 : at + 30] = data[box + 4 : box + 12] = both
    begin = data.index(COD)
    end = begin + 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    body = data[begin + 4 : end]
    if "width" in blocks:
        body[6] = body[7] = blocks["width"]
    if "precinct" in blocks:
        body[0] |= 1
        body += bytes([blocks["precinct"] * 0x11]) * (body[5] + 1)
    data[begin:end] = COD + struct.pack(">H", len(body) + 2) + body
    return bytes(data)


def tiled_tiff(size: int, tile: int) -> bytes:
    """Return a grey TIFF of zeros with one tile, which may be larger than the image."""
    packed = zlib.compress(bytes(1 << 16))
    tags = {
        256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0,
        325: len(packed),
    }  # fmt: skip
    tags[324] = 10 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed
