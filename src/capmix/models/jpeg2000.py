"""What the header of a JPEG 2000 image says of the memory that its decoder needs.

OpenJPEG makes some hundred bytes for each code block and precinct before it reads any: an image of
250 bytes whose blocks are as small as they may be costs 12 GB. Segments are looked for in the whole
file and not by its structure, so that nothing hides one: 12 bytes of pixels that look like a
segment are rarer than images that have such blocks.
"""

import re
from collections.abc import Iterator
from struct import Struct

MAX_COMPONENTS = 4  # all that Pillow reads
MAX_SAMPLES = 300_000_000  # values of all components, each of which takes 6 bytes
MAX_BLOCKS = 400_000  # of up to 1.3 kB each; 100 million pixels of RGB in blocks of 32 x 32
SIZE = re.compile(rb"\xff\x4f\xff\x51(?=(..)..(.{16}).{16}(..))", re.DOTALL)
# The ranges are those that OpenJPEG takes: levels, block width and height, style, transform.
BLOCKS = rb"([\0-\x20][\0-\x08][\0-\x08])[\0-\x7f][\0\1]"
DEFAULT = re.compile(rb"\xff\x52\0[\x0c-\x2d](?=([\0-\x07])...[\0-\1]" + BLOCKS + rb")", re.DOTALL)
OF_ONE = re.compile(rb"\xff\x53\0[\x09-\x2c](?=.([\0\1])" + BLOCKS + rb")", re.DOTALL)
CORNERS, SHORT = Struct(">IIII"), Struct(">H")


def check_jpeg2000(data: bytes) -> None:
    """Raise ValueError where the decoder would need more memory than other formats' do."""
    for found in SIZE.finditer(data):
        length, corners, count = found.groups()
        (components,) = SHORT.unpack(count)
        if SHORT.unpack(length)[0] != 38 + 3 * components:
            continue
        if components > MAX_COMPONENTS:
            raise ValueError(f"{components} components; at most {MAX_COMPONENTS} are read")
        right, bottom, left, top = CORNERS.unpack(corners)
        width, height = max(0, right - left), max(0, bottom - top)
        if components * width * height > MAX_SAMPLES:
            raise ValueError(f"{width} x {height} pixels of {components} components")
        for cells in _cells(data):
            blocks = components * sum(_count(width, height, *one) for one in cells)
            if blocks > MAX_BLOCKS:
                raise ValueError(f"{width} x {height} pixels in about {blocks:,} blocks")


Cell = tuple[int, int, int]  # halvings of the image; exponents of the width and height of a cell


def _cells(data: bytes) -> Iterator[list[Cell]]:
    """Of each segment that tells blocks: the smaller of a code block and a precinct by level."""
    for pattern in (DEFAULT, OF_ONE):
        for found in pattern.finditer(data):
            levels, width, height = found[2]
            precincts = data[found.end(2) + 2 :][: levels + 1] if found[1][0] & 1 else b""
            cells: list[Cell] = []
            for resolution in range(levels + 1):
                both = precincts[resolution] if resolution < len(precincts) else 0xFF
                # Precincts of all but the lowest are halved for the bands that they hold.
                low = 1 if resolution else 0
                wide = max(0, min(width + 2, (both & 15) - low))
                high = max(0, min(height + 2, (both >> 4) - low))
                cells.append((levels - resolution, wide, high))
            yield cells


def _count(width: int, height: int, halvings: int, wide: int, high: int) -> int:
    return (1 + (width >> (halvings + wide))) * (1 + (height >> (halvings + high)))
