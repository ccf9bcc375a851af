"""Find text in images with PP-OCRv4's mobile detector, which the package `rapidocr` includes.

Code and weights of the package are Apache-2.0. Only its model file is used: it runs in OpenVINO,
and no text is read. The network returns for each pixel how likely it belongs to a text (DBNet,
arXiv 1911.08947). A text is a connected region over PIXEL, described by the smallest rectangle
around it; rectangles with a mean likelihood under BOX are dropped. As the network was trained on
shrunken texts, each side of the rectangle is moved out by area x UNCLIP / perimeter. These three
numbers are RapidOCR's.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from capmix.errors import UserError
from capmix.models.device import preparing_threads, provenance
from capmix.models.openvino_tower import openvino_core
from capmix.models.registry import require
from capmix.models.text_mask import text_mask

FILE = "models/ch_PP-OCRv4_det_mobile.onnx"
PACKAGES = ("rapidocr", "openvino", "scipy")
PIXEL, BOX, UNCLIP = 0.3, 0.5, 1.6
LEAST_SIDE = 3  # pixels of the network's input: the shortest side of a rectangle
MAX_BOXES = 1000
STEP = 32  # the network's input sides are multiples
BATCH = 8


@dataclass(frozen=True)
class PreparedImage:
    """An image for the detector: uint8 (H, W, 3) in BGR order, and its own width and height."""

    pixels: np.ndarray
    size: tuple[int, int]


class TextDetector:
    """Finds the boxes of texts. Runs on the CPU, one image at a time; loaded at first use.

    The boxes of an image therefore do not depend on the other images of a batch.
    """

    name = "pp-ocrv4-det-mobile"
    batch_size = BATCH

    def __init__(self, side: int):
        """`side` is the longest side of the network's input in pixels.

        Raises UserError if a package is missing or does not include the model.
        """
        self._side, self._path = side, check_detector()
        self.workers = preparing_threads()
        weights = hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]
        self.settings: dict[str, Any] = {"detector": self.name, "weights": weights, "side": side}
        self.provenance = provenance(("openvino",), "cpu", 1)

    def load(self) -> None:
        """Compile the model, if that has not been done yet."""
        _compiled(self._path)

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Reduce an RGB image so that its longer side is `side`; sides become multiples of 32.

        Smaller images are not enlarged: an enlarged icon looks like a letter to the network.
        """
        scale = min(1.0, self._side / max(image.size))
        width, height = (max(STEP, round(one * scale / STEP) * STEP) for one in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return PreparedImage(np.asarray(resized)[:, :, ::-1], image.size)

    def find(self, images: Sequence[PreparedImage]) -> list[np.ndarray]:
        """Return the boxes of each image, int32 (N, 4, 2): x and y of corners, in its pixels."""
        return [boxes_of(self.likelihood(one), one.size) for one in images]

    def likelihood(self, image: PreparedImage) -> np.ndarray:
        """Return the network's output, float32 (H, W) in 0 to 1."""
        inputs = image.pixels.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        found: np.ndarray = _compiled(self._path)(inputs)[0][0, 0].copy()
        return found


def boxes_of(likelihood: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the boxes for an output of the network, float32 (H, W).

    They are int32 (N, 4, 2) in pixels of an image of `size` (width and height), at most 1,000.
    """
    from scipy import ndimage

    height, width = likelihood.shape
    # Dilated by a pixel to the right and down, as in RapidOCR: this joins letters.
    regions = ndimage.binary_dilation(likelihood > PIXEL, np.ones((2, 2)), origin=-1)
    labels, _ = ndimage.label(regions, np.ones((3, 3)))
    found = []
    for number, place in enumerate(ndimage.find_objects(labels)[:MAX_BOXES], start=1):
        corner = np.array([place[1].start, place[0].start])
        rectangle = smallest_rectangle(_outline(labels[place] == number) + corner)
        if min(rectangle.sides) < LEAST_SIDE:
            continue
        if _mean_inside(likelihood, rectangle.corners()) < BOX:
            continue
        found.append(rectangle.grown().corners())
    if not found:
        return np.empty((0, 4, 2), np.int32)
    scaled = np.stack(found) * (size[0] / width, size[1] / height)
    boxes: np.ndarray = np.round(np.clip(scaled, 0, size)).astype(np.int32)
    return boxes


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in any direction: `axes` are the unit vectors (2, 2) along its two sides.

    `low` and `sides` are the smallest coordinate along each of them, and the lengths, (2,).
    """

    axes: np.ndarray
    low: np.ndarray
    sides: np.ndarray

    def corners(self) -> np.ndarray:
        """Return the corners, float64 (4, 2), in order around the rectangle."""
        steps = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        found: np.ndarray = (self.low + steps * self.sides) @ self.axes
        return found

    def grown(self) -> "Rectangle":
        """Return the rectangle with each side moved out by area x UNCLIP / perimeter."""
        out = self.sides.prod() * UNCLIP / (2 * self.sides.sum())
        return Rectangle(self.axes, self.low - out, self.sides + 2 * out)


def smallest_rectangle(points: np.ndarray) -> Rectangle:
    """Return the rectangle of the smallest area around points, (N, 2).

    One of its sides has the direction of an edge of their convex hull.
    """
    hull = _hull(points)
    edges = np.roll(hull, -1, axis=0) - hull
    lengths = np.linalg.norm(edges, axis=1, keepdims=True)
    along = edges / np.maximum(lengths, 1e-9) if lengths.any() else np.array([[1.0, 0.0]])
    axes = np.stack([along, along[:, ::-1] * (-1, 1)], axis=1)  # (edges, 2, 2)
    at = axes @ hull.T
    low, sides = at.min(axis=2), np.ptp(at, axis=2)
    best = int(sides.prod(axis=1).argmin())
    return Rectangle(axes[best], low[best], sides[best])


def _outline(region: np.ndarray) -> np.ndarray:
    """Return x and y, int (N, 2), of the first and last pixel of each row of a region."""
    rows = np.flatnonzero(region.any(axis=1))
    inside = region[rows]
    first, last = inside.argmax(axis=1), region.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
    return np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1)


def _hull(points: np.ndarray) -> np.ndarray:
    """Return the convex hull of points, float64 (M, 2), by Andrew's monotone chain."""
    ordered = np.unique(points, axis=0).tolist()
    if len(ordered) < 3:
        return np.array(ordered, np.float64)
    return np.array(_chain(ordered)[:-1] + _chain(ordered[::-1])[:-1], np.float64)


def _chain(points: list[list[int]]) -> list[list[int]]:
    """Return the points on one side of the hull of sorted points."""
    found: list[list[int]] = []
    for x, y in points:
        while len(found) > 1:
            (x0, y0), (x1, y1) = found[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            found.pop()
        found.append([x, y])
    return found


def _mean_inside(likelihood: np.ndarray, corners: np.ndarray) -> float:
    """Return the mean likelihood in a rectangle, corners (4, 2) in pixel numbers."""
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    left, top = max(0, int(left)), max(0, int(top))
    part = likelihood[top : int(bottom) + 2, left : int(right) + 2]
    # In text_mask, the centre of pixel 0 is at 0.5.
    inside = text_mask(corners[None] - (left, top) + 0.5, (part.shape[1], part.shape[0]))
    return float(part[inside].mean()) if inside.any() else 0.0


def check_detector() -> Path:
    """Return the path of the model. The package is not imported.

    Raises UserError if a package is missing or does not include the model.
    """
    require(PACKAGES, "annotate --method text_area", "text-area")
    spec = find_spec("rapidocr")
    folders = (spec and spec.submodule_search_locations) or ()
    for folder in folders:
        if (path := Path(folder) / FILE).is_file():
            return path
    raise UserError(
        f"annotate --method text_area: the package rapidocr has no {FILE}; "
        "run pip install 'capmix[text-area]' for the version that has it"
    )


@cache
def _compiled(path: Path) -> Any:
    from capmix.engine.local import cores

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",  # all cores work on the same image
        "INFERENCE_NUM_THREADS": cores(),
        "ENABLE_CPU_PINNING": False,  # other threads prepare images on the same cores
    }
    core = openvino_core()
    return core.compile_model(core.read_model(path), "CPU", settings)
