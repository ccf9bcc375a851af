"""The shapes of a figure, placed in pixels; the same for the page, PDF and PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
# Narrow and wide characters of DejaVu Sans; most browser fonts are narrower.
NARROW, WIDE = set("ijlt.,:;!'|I()[] f/r-"), set("mwMW%@+–−≈★")
SIZE = 12


@dataclass(frozen=True)
class Line:
    """A line. `colour` is a hex colour or a name of the theme: ink, quiet, grid, paper."""

    points: Sequence[Point]
    colour: str
    width: float = 2
    dash: Sequence[float] = ()
    part: str = ""


@dataclass(frozen=True)
class Area:
    points: Sequence[Point]
    colour: str
    opacity: float = 0.2
    part: str = ""


@dataclass(frozen=True)
class Dot:
    """A marker. `tip` is its tooltip."""

    at: Point
    colour: str
    shape: int = 0
    radius: float = 4.5
    hollow: bool = False
    tip: str = ""
    part: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Text:
    at: Point
    text: str
    anchor: Anchor = "start"
    colour: str = "ink"
    size: float = SIZE
    bold: bool = False
    part: str = ""

    @property
    def box(self) -> "Box":
        width = text_width(self.text, self.size, self.bold)
        left = self.at[0] - {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor] * width
        return Box(left, self.at[1] - 0.8 * self.size, left + width, self.at[1] + 0.25 * self.size)


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", gap: float = 0.0) -> bool:
        return (
            self.left < other.right + gap
            and other.left < self.right + gap
            and self.top < other.bottom + gap
            and other.top < self.bottom + gap
        )

    def is_within(self, other: "Box") -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


Shape = Line | Area | Dot | Text


@dataclass
class Scene:
    """Shapes in drawing order. Shapes with a `part` can be hidden in the page.

    Without those shapes the scene is `short` pixels high.
    """

    width: float
    height: float
    short: float = 0
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        self.shapes.extend(shapes)


def text_width(text: str, size: float = SIZE, bold: bool = False) -> float:
    """Return an upper bound of the width in pixels, for any font no wider than DejaVu Sans."""
    em = sum(
        0.38 if letter in NARROW else 0.98 if letter in WIDE or letter > "\u2e00" else 0.65
        for letter in text
    )
    return em * size * (1.1 if bold else 1.0)


def shortened(text: str, width: float, size: float = SIZE) -> str:
    """Return `text`, with its middle elided if it is wider than `width`.

    Beginning and end are kept because names of recipes differ at both.
    """
    if text_width(text, size) <= width:
        return text
    for left_out in range(2, len(text)):
        half = (len(text) - left_out) // 2
        short = f"{text[: len(text) - left_out - half]}…{text[len(text) - half :]}"
        if text_width(short, size) <= width:
            return short
    return "…"


def spread(wanted: Sequence[float], gap: float, least: float, most: float) -> list[float]:
    """Return positions close to `wanted` and at least `gap` apart.

    They are between `least` and `most` if they fit.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [min(max(wanted[i], least), most) for i in order]
    for _ in range(200):
        moved = False
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 1e-6:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
                moved = True
        if not moved:
            break
    if places:
        shift = max(0.0, least - places[0]) or min(0.0, most - places[-1])
        places = [place + shift for place in places]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    found = [0.0] * len(places)
    for place, i in zip(places, order, strict=True):
        found[i] = place
    return found


def dodged(points: Sequence[Point], apart: float) -> list[Point]:
    """Return the points, moved just enough to be `apart` pixels from each other."""
    places = [list(point) for point in points]
    for _ in range(300):
        moved = False
        for i, one in enumerate(places):
            for other in places[:i]:
                dx, dy = one[0] - other[0], one[1] - other[1]
                distance = math.hypot(dx, dy)
                if distance < apart - 0.01:
                    dx, dy = (dx / distance, dy / distance) if distance else (0.0, 1.0)
                    push = (apart - distance) / 2
                    one[0], one[1] = one[0] + dx * push, one[1] + dy * push
                    other[0], other[1] = other[0] - dx * push, other[1] - dy * push
                    moved = True
        if not moved:
            break
    return [(place[0], place[1]) for place in places]
