"""Read the size of a plain JPEG from its header.

Besides computing digests, reading image headers with Pillow would be the most expensive part of
the index stage. Most JPEGs in pools, for example those written by img2dataset, contain only the
segments that are known here; for other JPEGs, Pillow is used.
"""

from struct import Struct
from typing import NamedTuple

START = b"\xff\xd8"
MARKER = 0xFF
FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
TABLES, SCAN = 0xDB, 0xDA
JFIF, ADOBE = 0xE0, 0xEE
SKIPPED = (0xC4, 0xDD, 0xFE)  # Huffman tables, restart interval, comment
JFIF_BYTES, ADOBE_BYTES = 16, 14
TABLE_BYTES = 65  # size of an 8-bit quantization table
MAX_SEGMENTS = 64
MAX_PIXELS = 80_000_000  # below Pillow's own limit
SEGMENT = Struct(">BBH")  # 255, kind, number of bytes after the kind
FRAME = Struct(">BHHB")  # bits, height, width, components


class JpegFrame(NamedTuple):
    """Width and height in pixels as stored, and the number of components: 1, 3 or 4."""

    width: int
    height: int
    components: int


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels as stored.

    Returns None if Pillow might reject the header or read it differently.
    """
    frame = jpeg_frame(data)
    return None if frame is None else frame[:2]


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Like jpeg_size, with the number of components."""
    frame, at = None, len(START)
    if not data.startswith(START):
        return None
    for _ in range(MAX_SEGMENTS):
        if at + SEGMENT.size > len(data):
            return None
        start, kind, length = SEGMENT.unpack_from(data, at)
        begin, end = at + SEGMENT.size, at + 2 + length
        if start != MARKER or length < 2 or end > len(data):
            return None
        if kind in FRAMES:
            if frame is not None or (frame := _frame(data, begin, length)) is None:
                return None
        elif kind == TABLES:
            are_wide = any(byte > 15 for byte in data[begin:end:TABLE_BYTES])  # 16-bit tables
            if are_wide or (length - 2) % TABLE_BYTES:
                return None
        elif kind == SCAN:
            return frame
        elif kind not in SKIPPED and not _is_known_application(kind, length):
            return None
        at = end
    return None


def _frame(data: bytes, begin: int, length: int) -> JpegFrame | None:
    if length < 2 + FRAME.size:
        return None
    bits, height, width, components = FRAME.unpack_from(data, begin)
    is_known = bits == 8 and components in (1, 3, 4) and length == 8 + 3 * components
    is_known &= 0 < width * height <= MAX_PIXELS
    return JpegFrame(width, height, components) if is_known else None


def _is_known_application(kind: int, length: int) -> bool:
    """Whether a segment is a JFIF or Adobe segment with all fields that Pillow reads."""
    return (kind == JFIF and length >= JFIF_BYTES) or (kind == ADOBE and length >= ADOBE_BYTES)
