"""Scenes of one or two kinds of objects, and their images of SIDE x SIDE pixels.

A scene has everything that its description may mention: classes, colours, sizes, counts, a relation
and a background. Image quality varies: some images are blurred, some have a bar over a part of the
first object or lines of text over the image, and some objects are tiny.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from world.drawings import drawings, object_classes

SIDE = 32
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 30),
    "purple": (140, 40, 170),
    "orange": (245, 130, 20),
}
# The sky (or wall) and the ground (or floor) of each background.
BACKGROUNDS = {
    "a meadow": ((190, 225, 250), (110, 180, 80)),
    "a beach": ((150, 210, 250), (240, 220, 160)),
    "the snow": ((200, 215, 230), (250, 250, 255)),
    "a wooden floor": ((235, 225, 210), (160, 110, 60)),
    "the water": ((180, 220, 240), (40, 110, 180)),
    "a street at night": ((30, 30, 60), (70, 70, 75)),
}
SIZES = {"tiny": (7, 9), "small": (11, 14), "": (15, 19), "big": (21, 26)}
HEAD = 60  # the number of classes that count as common
RARE = 100  # and as rare
FLATTENED = 9  # a class of rank r has the weight 1 / (r + FLATTENED): Zipf and Mandelbrot's law
TINTED = 0.55  # share of the colour in a tinted object


@dataclass(frozen=True)
class Thing:
    """`count` equal objects. `colour` and `size` are "" if there is nothing to say of them."""

    number: int  # position in object_classes()
    colour: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    """One or two things. The second is at the `relation` of the first: "left of" means that the
    first is on the left."""

    things: tuple[Thing, ...]
    relation: str
    background: str
    blurred: bool
    occluded: bool
    lettered: bool
    seed: int


@cache
def frequencies() -> np.ndarray:
    """Return the probability of each class, float64 (C,): in a fixed random order."""
    count = len(object_classes())
    ranks = np.random.default_rng(11).permutation(count) + 1
    weights = 1.0 / (ranks + FLATTENED)
    found: np.ndarray = weights / weights.sum()
    return found


@cache
def by_frequency() -> tuple[int, ...]:
    """Return the numbers of the classes, the most frequent first."""
    return tuple(int(one) for one in np.argsort(-frequencies(), kind="stable"))


def draw_scene(seed: tuple[int, ...], classes: np.ndarray | None = None) -> Scene:
    """Draw a scene. `classes` are the probabilities of classes, float (C,); default frequencies().

    Equal seeds give equal scenes.
    """
    random = np.random.default_rng(seed)
    weights = frequencies() if classes is None else classes
    number = 1 + int(random.random() < 0.4)
    chosen = random.choice(len(weights), number, replace=False, p=weights)
    things = tuple(_draw_thing(random, int(one), number) for one in chosen)
    relation = str(random.choice(["left of", "right of", "above"])) if number == 2 else ""
    background = str(random.choice(list(BACKGROUNDS)))
    blurred, occluded, lettered = (random.random(3) < (0.15, 0.15, 0.1)).tolist()
    seed_of_image = int(random.integers(1 << 62))
    return Scene(things, relation, background, blurred, occluded, lettered, seed_of_image)


def _draw_thing(random: np.random.Generator, number: int, things: int) -> Thing:
    colour = str(random.choice(list(COLOURS))) if random.random() < 0.5 else ""
    sizes = ["tiny", "small", "", "big"] if things == 1 else ["tiny", "small", ""]
    odds = [0.1, 0.2, 0.4, 0.3] if things == 1 else [0.1, 0.3, 0.6]
    size = str(random.choice(sizes, p=odds))
    count = int(random.choice([1, 2, 3], p=[0.8, 0.13, 0.07]))
    is_large = size == "big" or (size == "" and things == 2)  # no room for several
    return Thing(number, colour, size, 1 if is_large else count)


def render(scene: Scene) -> Image.Image:
    """Return the image of a scene, RGB."""
    random = np.random.default_rng(scene.seed)
    image = _background(scene.background, random)
    places = _places(scene, random)
    for thing, spots in zip(scene.things, places, strict=True):
        low, high = SIZES[thing.size]
        if thing.count > 1:
            low, high = min(low, 12), min(high, 14)
        side = int(random.integers(low, high + 1))
        drawing = _object(thing, side, bool(random.random() < 0.5), float(random.uniform(-15, 15)))
        for x, y in spots:
            at = round(x - drawing.width / 2), round(y - drawing.height / 2)
            image.paste(drawing, at, drawing)
    if scene.occluded:
        _occlude(image, places[0][0], random)
    if scene.lettered:
        _letter(image, random)
    if scene.blurred:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.7, 1.4))))
    return image


def _background(name: str, random: np.random.Generator) -> Image.Image:
    sky, ground = BACKGROUNDS[name]
    horizon = int(random.integers(10, 22))
    pixels = np.empty((SIDE, SIDE, 3), np.float32)
    pixels[:horizon], pixels[horizon:] = sky, ground
    pixels += random.normal(0, 4, pixels.shape) + random.normal(0, 10, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _places(scene: Scene, random: np.random.Generator) -> list[list[tuple[float, float]]]:
    """Return the centres of the objects of each thing, in pixels."""
    middle = SIDE / 2
    if len(scene.things) == 1:
        centres = [(middle + random.uniform(-4, 4), middle + random.uniform(-4, 4))]
    elif scene.relation == "above":
        x = middle + random.uniform(-3, 3)
        centres = [(x, 8.0), (x, 23.0)]
    else:
        y = middle + random.uniform(-3, 3)
        centres = [(8.0, y), (23.0, y)]
        if scene.relation == "right of":
            centres.reverse()
    return [
        _spread(centre, thing.count, random)
        for centre, thing in zip(centres, scene.things, strict=True)
    ]


def _spread(
    centre: tuple[float, float], count: int, random: np.random.Generator
) -> list[tuple[float, float]]:
    if count == 1:
        return [centre]
    turn = random.uniform(0, 2 * np.pi)
    angles = turn + 2 * np.pi * np.arange(count) / count
    return [(centre[0] + 7 * np.cos(one), centre[1] + 7 * np.sin(one)) for one in angles]


def _object(thing: Thing, side: int, mirrored: bool, degrees: float) -> Image.Image:
    drawing = _tinted(thing.number, thing.colour)
    scale = side / max(drawing.size)
    size = max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))
    drawing = drawing.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
    if mirrored:
        drawing = drawing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return drawing.rotate(degrees, Image.Resampling.BILINEAR, expand=True)


@cache
def _tinted(number: int, colour: str) -> Image.Image:
    drawing = drawings()[number]
    if not colour:
        return drawing
    pixels = np.asarray(drawing, np.float32).copy()
    light = pixels[..., :3].mean(axis=2, keepdims=True) / 255
    tint = np.asarray(COLOURS[colour], np.float32) * (0.35 + 0.65 * light)
    pixels[..., :3] = (1 - TINTED) * pixels[..., :3] + TINTED * tint
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _occlude(image: Image.Image, at: tuple[float, float], random: np.random.Generator) -> None:
    colour = tuple(int(one) for one in random.integers(0, 255, 3))
    x, y = at[0] + random.uniform(-8, 2), at[1] + random.uniform(-8, 2)
    ImageDraw.Draw(image).rectangle((x, y, x + 7, y + 7), fill=colour)


def _letter(image: Image.Image, random: np.random.Generator) -> None:
    """Draw lines of strokes that look like text, too small to be read."""
    draw = ImageDraw.Draw(image)
    colour = (255, 255, 255) if random.random() < 0.5 else (0, 0, 0)
    top = int(random.integers(0, SIDE - 4))
    for line in range(int(random.integers(1, 4))):
        y = top + 4 * line
        for x in range(int(random.integers(0, 8)), SIDE - 2, 3):
            if random.random() < 0.8:
                draw.line((x, y, x + int(random.integers(0, 2)), y + 2), fill=colour)
