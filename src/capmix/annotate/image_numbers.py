"""Numbers of one image: perceptual hash, sharpness, entropy, colourfulness, aspect ratio.

All are computed from the image upright, on white, and reduced to at most SIDE pixels per side. This
bounds their cost, and makes photos of any resolution comparable.

- `phash`: 64-bit perceptual hash of the ImageHash library (signs of the low frequencies of a DCT)
- `sharpness`: variance of the Laplacian of the grey image (Pech-Pacheco et al., ICPR 2000)
- `entropy`: entropy of the grey levels, in bits (0 to 8)
- `colourfulness`: Hasler & Suesstrunk 2003, "Measuring colourfulness in natural images", M^(3)
- `aspect`: width / height
"""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from capmix.models.images import SPARE, decode_image

SIDE = 512  # pixels; img2dataset's common size, so that its images are used as they are
HASH = "phash-64"
FIELDS = [
    ("phash", pa.string()),
    ("sharpness", pa.float32()),
    ("entropy", pa.float32()),
    ("colourfulness", pa.float32()),
    ("aspect", pa.float32()),
]


class ImageNumbers(NamedTuple):
    """The columns of FIELDS. `phash` is 16 hex digits; `sharpness` is None below 3 pixels."""

    phash: str
    sharpness: float | None
    entropy: float
    colourfulness: float
    aspect: float


def image_numbers(data: bytes) -> ImageNumbers:
    """Decode an image, within the limits of decode_image, and compute its numbers.

    Raises BadImageError if it cannot be decoded.
    """
    return numbers_of(decode_image(data, input_side=SIDE // SPARE))


def numbers_of(image: Image.Image) -> ImageNumbers:
    """Compute the numbers of a decoded RGB image."""
    import imagehash

    aspect = image.width / image.height
    if max(image.size) > SIDE:
        image = image.copy()  # thumbnail works in place
        image.thumbnail((SIDE, SIDE))
    grey = image.convert("L")
    return ImageNumbers(
        str(imagehash.phash(grey)),
        sharpness(np.asarray(grey)),
        entropy(grey.histogram()),
        colourfulness(np.asarray(image)),
        aspect,
    )


def sharpness(grey: np.ndarray) -> float | None:
    """Return the variance of the Laplacian (4 neighbours) of uint8 (H, W), without its border.

    Its sums are of integers, so that the result is the same on all machines. None if H or W is
    below 3.
    """
    if min(grey.shape) < 3:
        return None
    levels = grey.astype(np.int16)
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    # At most 2^21 values below 2^20 when squared: the sums are exact in float64.
    laplacian = (around - 4 * levels[1:-1, 1:-1]).astype(np.float64).ravel()
    return _moments(laplacian, 1)[1]


def entropy(histogram: list[int]) -> float:
    """Return the entropy, in bits, of the counts of each level."""
    counts = np.array([count for count in histogram if count], np.float64)
    shares = counts / counts.sum()
    return float(abs(shares @ np.log2(shares)))


def colourfulness(image: np.ndarray) -> float:
    """Return Hasler & Suesstrunk's M^(3) of uint8 (H, W, 3): 0 for grey, over 100 for vivid images.

    With rg = R - G and yb = (R + G) / 2 - B: the length of their standard deviations plus 0.3 times
    the length of their means.
    """
    red, green, blue = (image[..., i].ravel().astype(np.int16) for i in range(3))
    # Twice yb is a whole number: the sums are exact in float64, and equal on all machines.
    pairs = ((red - green, 1), (red + green - 2 * blue, 2))
    moments = [_moments(values.astype(np.float64), unit) for values, unit in pairs]
    mean = math.hypot(*(mean for mean, _ in moments))
    return math.sqrt(sum(variance for _, variance in moments)) + 0.3 * mean


def _moments(values: np.ndarray, unit: int) -> tuple[float, float]:
    """Return mean and variance of values / unit."""
    mean = float(values.sum()) / values.size
    variance = float(values @ values) / values.size - mean * mean
    return mean / unit, max(variance, 0.0) / unit**2
