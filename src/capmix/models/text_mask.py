"""Text boxes of an image: which pixels they cover, and the image with these pixels filled.

A box is a convex quadrilateral: its corners, in pixels of the upright image, in clockwise or
counter-clockwise order. A pixel is covered if its centre is inside.
"""

import numpy as np
from PIL import Image

MARGIN = 4  # the rim is 1/4 of the rectangle's shorter side wide


def text_mask(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which pixels the boxes cover together, bool (height, width).

    `boxes` is (N, 4, 2): x and y of the corners. Parts outside of the image do not count. `size` is
    width and height.
    """
    width, height = size
    # +1 where a box begins in a row, -1 after it: running sums are the number of boxes per pixel.
    edges = np.zeros((height, width + 1), np.int16)
    for box in boxes:
        rows, starts, ends = _covered(np.asarray(box, np.float64), width, height)
        edges[rows, starts] += 1  # a box has each row once
        edges[rows, ends] -= 1
    np.cumsum(edges, axis=1, dtype=np.int16, out=edges)
    mask: np.ndarray = edges[:, :width] > 0
    return mask


def _covered(box: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of the image that a box covers, and the first and last column + 1 in each."""
    top = max(0, int(np.ceil(box[:, 1].min() - 0.5)))
    bottom = min(height, int(np.ceil(box[:, 1].max() - 0.5)))
    rows = np.arange(top, max(top, bottom))
    centres = rows + 0.5
    left, right = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    for one, other in zip(box, np.roll(box, -1, axis=0), strict=True):
        if one[1] == other[1]:
            continue
        low, high = sorted((one[1], other[1]))
        crosses = (centres >= low) & (centres <= high)
        at = one[0] + (centres - one[1]) * (other[0] - one[0]) / (other[1] - one[1])
        left[crosses] = np.minimum(left, at)[crosses]
        right[crosses] = np.maximum(right, at)[crosses]
    starts = np.clip(np.ceil(left - 0.5), 0, width)
    ends = np.clip(np.ceil(right - 0.5), 0, width)
    some = ends > starts
    return rows[some], starts[some].astype(int), ends[some].astype(int)


def without_text(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """Return an RGB image with each box, of (N, 4, 2), filled with the mean colour around it.

    That is the mean of the pixels that no box covers, in the rectangle around the box with a rim of
    1/4 of its shorter side (at least one pixel). If boxes cover all of these, it is the mean of all
    uncovered pixels of the image, or of the image if there are none. Of overlapping boxes, the last
    one's colour is kept.
    """
    pixels = np.array(image)
    mask = text_mask(boxes, image.size)
    filled = pixels.copy()
    elsewhere: np.ndarray | None = None  # computed at most once: an image may be large
    for box in boxes:
        rows, starts, ends = _covered(np.asarray(box, np.float64), *image.size)
        colour = _colour_around(box, pixels, mask)
        if colour is None:
            elsewhere = _colour_elsewhere(pixels, mask) if elsewhere is None else elsewhere
            colour = elsewhere
        for row, start, end in zip(rows, starts, ends, strict=True):
            filled[row, start:end] = colour
    return Image.fromarray(filled)


def _colour_around(box: np.ndarray, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Return the mean colour around a box, uint8 (3,), or None if boxes cover all around it."""
    (left, top), (right, bottom) = box.min(axis=0), box.max(axis=0)
    rim = max(1, round(min(right - left, bottom - top) / MARGIN))
    here = (
        slice(max(0, int(top) - rim), max(0, int(bottom) + rim)),
        slice(max(0, int(left) - rim), max(0, int(right) + rim)),
    )
    covered = mask[here]
    return None if covered.all() else _mean(pixels[here][~covered])


def _colour_elsewhere(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean colour of an image without its boxes, or with them if they cover it all."""
    return _mean(pixels.reshape(-1, 3) if mask.all() else pixels[~mask])


def _mean(colours: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.round(colours.mean(axis=0, dtype=np.float64)).astype(np.uint8)
    return rounded
