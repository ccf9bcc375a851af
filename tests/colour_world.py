"""A pool of plain-coloured images with a planted best threshold, and a scorer that sees colours.

The best 200 of 500 raw texts name the right colour and the other 300 a wrong one, so a recipe
should keep the best 40%; the best 8% name two of the eight colours only.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from samples import tar_bytes

from capmix.models.tokens import Tokens
from capmix.score.settings import ScoreSettings
from capmix.workspace import Workspace, open_workspace

COLOURS = {
    "red": (200, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 210), "yellow": (230, 220, 40),
    "black": (20, 20, 20), "white": (240, 240, 240), "purple": (140, 40, 170),
    "orange": (240, 140, 20),
}  # fmt: skip
NAMES = list(COLOURS)
GOOD, WRONG, SHARDS = 200, 300, 2
MODEL = "colour_world:ColourScorer"


class ColourScorer:
    """Embed an image as 16 smooth functions of its mean colour."""

    name = "colours"
    dimensions, batch_size, workers = 16, 64, 1
    input_side: int | None = None
    weights: ClassVar[str] = "1"

    def __init__(self, settings: ScoreSettings):
        self.settings: dict[str, Any] = {"model": "colours"}
        self._axes = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)

    @property
    def encoder(self) -> "ColourScorer":
        return self

    def load(self) -> None:
        pass

    def prepare(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image, np.float32).mean(axis=(0, 1)) / 255

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return np.cos(3 * np.stack(pixels) @ self._axes)

    def project_images(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings.astype(np.float32)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return Tokens(texts, [False for _ in texts])

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        return np.full((len(inputs), self.dimensions), 0.25, np.float32)


class OtherWeights(ColourScorer):
    """The same scorer with other weights."""

    weights: ClassVar[str] = "2"


class OtherName(ColourScorer):
    """The same scorer, with its own folder of embeddings."""

    name = "others"


def picture(colour: int, seed: int) -> bytes:
    """Return a PNG of the colour, slightly varied by the seed."""
    noise = np.random.default_rng(seed).integers(-12, 13, 3)
    plain = np.clip(np.array(COLOURS[NAMES[colour]]) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(np.broadcast_to(plain, (6, 6, 3)).copy()).save(out, "PNG")
    return out.getvalue()


def write_world(folder: Path) -> Path:
    """Write the pool, a file of scores, and an evaluation set of eight classes of 12 images."""
    members: list[list[tuple[str, bytes]]] = [[] for _ in range(SHARDS)]
    scores = [["uid", "score"]]
    for row in range(GOOD + WRONG):
        colour = row % (2 if row < 40 else 8)
        named = colour if row < GOOD else (colour + 1) % 8
        uid, key = f"{row:032x}", f"{row:09d}"
        text = f"a {NAMES[named]} thing"
        here = members[row % SHARDS]
        here += [(f"{key}.png", picture(colour, row)), (f"{key}.txt", text.encode())]
        here += [(f"{key}.json", json.dumps({"uid": uid, "caption": text}).encode())]
        scores.append([uid, f"{1 - row / 1000:.4f}"])
    (folder / "pool").mkdir(parents=True)
    for number, some in enumerate(members):
        (folder / f"pool/{number:05d}.tar").write_bytes(tar_bytes(some))
    with (folder / "scores.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(scores)
    write_set(folder / "colours", 1000)
    return folder


def write_set(folder: Path, first_seed: int, images: int = 12) -> Path:
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            seed = first_seed + number * images + image
            (folder / name / f"{image}.png").write_bytes(picture(number, seed))
    return folder


def open_world(folder: Path, work: str = "work", embedded: bool = True) -> Workspace:
    """Open the pool with its scores; with `embedded`, also save the images' embeddings."""
    opened = open_workspace(str(folder / "pool"), str(folder / work))
    opened.import_scores([str(folder / "scores.csv")], source="raw")
    if embedded:
        opened.score(model=MODEL, sources=["raw"], save_embeddings=True)
    return opened
