"""Estimate from the header of a JPEG 2000 image how much memory its decoder needs.

OpenJPEG allocates hundreds of bytes for each code block and precinct before it reads any: an image
file of 250 bytes with the smallest allowed blocks takes 12 GB. Segments are searched for in the
whole file, regardless of its structure, so that none can be hidden. Pixel data rarely looks like a
segment by chance, since 12 bytes must match.
"""

import re
from collections.abc import Iterator
from struct import Struct

MAX_COMPONENTS = 4  # Pillow's maximum
MAX_SAMPLES = 300_000_000  # values of all components; each takes 6 bytes
MAX_BLOCKS = 400_000  # of up to 1.3 kB each; enough for 100 million RGB pixels in 32 x 32 blocks
SIZE = re.compile(rb"\xff\x4f\xff\x51(?=(..)..(.{16}).{16}(..))", re.DOTALL)
# Levels, block width and height, style, transform; the ranges are those that OpenJPEG accepts.
BLOCKS = rb"([\0-\x20][\0-\x08][\0-\x08])[\0-\x7f][\0\1]"
DEFAULT = re.compile(rb"\xff\x52\0[\x0c-\x2d](?=([\0-\x07])...[\0-\1]" + BLOCKS + rb")", re.DOTALL)
COMPONENT = re.compile(rb"\xff\x53\0[\x09-\x2c](?=.([\0\1])" + BLOCKS + rb")", re.DOTALL)
CORNERS, SHORT = Struct(">IIII"), Struct(">H")


def check_jpeg2000(data: bytes) -> None:
    """Raise ValueError if the decoder would need more memory than the decoders of other formats."""
    for found in SIZE.finditer(data):
        length, corners, count = found.groups()
        (components,) = SHORT.unpack(count)
        if SHORT.unpack(length)[0] != 38 + 3 * components:
            continue
        if components > MAX_COMPONENTS:
            raise ValueError(f"{components} components; the limit is {MAX_COMPONENTS}")
        right, bottom, left, top = CORNERS.unpack(corners)
        width, height = max(0, right - left), max(0, bottom - top)
        if components * width * height > MAX_SAMPLES:
            raise ValueError(f"{width} x {height} pixels with {components} components")
        for cells in _cells(data):
            blocks = components * sum(_count(width, height, *one) for one in cells)
            if blocks > MAX_BLOCKS:
                raise ValueError(f"{width} x {height} pixels in about {blocks:,} blocks")


Cell = tuple[int, int, int]  # halvings of the image; log2 of a cell's width and height


def _cells(data: bytes) -> Iterator[list[Cell]]:
    """Yield, for each segment with block sizes, the cells of each resolution level.

    A cell is the smaller of a code block and a precinct.
    """
    for pattern in (DEFAULT, COMPONENT):
        for found in pattern.finditer(data):
            levels, width, height = found[2]
            precincts = data[found.end(2) + 2 :][: levels + 1] if found[1][0] & 1 else b""
            cells: list[Cell] = []
            for resolution in range(levels + 1):
                both = precincts[resolution] if resolution < len(precincts) else 0xFF
                # Except at the lowest resolution, a precinct is divided among the bands: halve it.
                low = 1 if resolution else 0
                wide = max(0, min(width + 2, (both & 15) - low))
                high = max(0, min(height + 2, (both >> 4) - low))
                cells.append((levels - resolution, wide, high))
            yield cells


def _count(width: int, height: int, halvings: int, wide: int, high: int) -> int:
    return (1 + (width >> (halvings + wide))) * (1 + (height >> (halvings + high)))
