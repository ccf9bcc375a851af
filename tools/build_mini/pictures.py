"""Render the source pictures at the pool's size, and find near-duplicates among them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageEnhance, ImageOps
from sources import Drawing

from capmix.models.images import decode_image

LONG_SIDE = 160


def draw(drawing: Drawing) -> bytes | None:
    """Render a picture on white, 160 px on its longer side, as WebP; None if blank or broken."""
    try:
        image = decode_image(_svg(drawing.svg) if drawing.svg else _read(drawing.path))
    except ValueError:
        return None
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    if np.asarray(image).std() < 2.0:
        return None
    out = io.BytesIO()
    image.save(out, "WEBP", quality=75, method=6)
    return out.getvalue()


def _svg(text: str) -> bytes:
    """Render an SVG as PNG bytes, without system fonts, so that all computers agree."""
    return bytes(resvg_py.svg_to_bytes(text, width=LONG_SIDE, skip_system_fonts=True))


def _read(path: Path | None) -> bytes:
    assert path is not None
    return path.read_bytes()


def nearest(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the highest cosine similarity of each row to any row of `others`, float32 (N,)."""
    if not len(others):
        return np.full(len(features), -1.0, np.float32)
    rows, columns = _unit(features), _unit(others)
    blocks = [(rows[i : i + 512] @ columns.T).max(axis=1) for i in range(0, len(rows), 512)]
    return np.concatenate(blocks)


def near_duplicate_groups(features: np.ndarray, threshold: float) -> np.ndarray:
    """Return each row's group, int (N,): single-link clusters at cosine >= threshold."""
    rows = _unit(features)
    parent = list(range(len(rows)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for start in range(0, len(rows), 512):
        for i, j in zip(*np.nonzero(rows[start : start + 512] @ rows.T >= threshold), strict=True):
            if start + i < j:
                parent[root(int(j))] = root(int(start + i))
    return np.array([root(i) for i in range(len(rows))])


def _unit(features: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    rows = np.asarray(features, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def view(data: bytes, seed: list[int]) -> Image.Image:
    """Return an augmented picture for training: flipped, rotated, cropped and colour-jittered."""
    random = np.random.default_rng(seed)
    image = decode_image(data)
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    image = image.rotate(
        random.uniform(-12, 12), Image.Resampling.BILINEAR, True, fillcolor="white"
    )
    width, height = image.size
    keep = np.sqrt(random.uniform(0.6, 1.0))
    left, top = random.uniform(0, 1 - keep, 2)
    box = (left * width, top * height, (left + keep) * width, (top + keep) * height)
    image = image.crop(tuple(round(side) for side in box))
    for enhance in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = enhance(image).enhance(random.uniform(0.7, 1.3))
    if random.random() < 0.15:
        image = ImageOps.grayscale(image).convert("RGB")
    return image
