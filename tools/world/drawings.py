"""The drawings of the world: clip art of the embedded pool, cut out of its white background."""

import csv
import io
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from capmix.pool import EMBEDDED, Sample, open_pool

WHITE = 24  # a pixel this close to white, and connected with the border, is background
LONG_SIDE = 96  # pixels; scenes are 32
CLASSES = Path(__file__).with_name("classes.csv")


@dataclass(frozen=True)
class ObjectClass:
    """A class of objects: its specific name, and the generic name of its kind."""

    name: str
    kind: str


@cache
def object_classes() -> tuple[ObjectClass, ...]:
    """Return the classes in the order of classes.csv."""
    return tuple(ObjectClass(row["name"], row["kind"]) for row in _rows())


@cache
def drawings() -> tuple[Image.Image, ...]:
    """Return the drawing of each class, RGBA, at most LONG_SIDE pixels on its longer side."""
    pool = open_pool(EMBEDDED)
    wanted = {row["title"] for row in _rows()}
    found: dict[str, tuple[str, Image.Image]] = {}
    for shard in pool.shards:
        for sample in pool.read(shard):
            if not isinstance(sample, Sample):
                raise ValueError(f"embedded pool: {sample}")
            title = _words(sample.text or "")
            url = str(sample.metadata["url"])
            if title in wanted and (title not in found or url < found[title][0]):
                found[title] = url, cut_out(Image.open(io.BytesIO(sample.image)))
    return tuple(found[row["title"]][1] for row in _rows())


def cut_out(image: Image.Image) -> Image.Image:
    """Make the white that is connected with the border transparent, and crop to what is left."""
    image = image.convert("RGB")
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (image.width + 2, image.height + 2), "white")
    framed.paste(image, (1, 1))
    marked = framed.copy()
    ImageDraw.floodfill(marked, (0, 0), (255, 0, 255), thresh=3 * WHITE)
    is_background = (np.asarray(marked) == (255, 0, 255)).all(axis=2)
    alpha = Image.fromarray(np.where(is_background, 0, 255).astype(np.uint8))
    framed.putalpha(alpha)
    box = alpha.getbbox()
    return framed.crop(box) if box else framed


def _rows() -> list[dict[str, str]]:
    with CLASSES.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def _words(title: str) -> str:
    return " ".join(re.sub(r"[^a-z ]+", " ", title.lower().replace("_", " ")).split())
