"""Lay out a figure for the page, PDF and PNG: axes, ticks, and text that does not overlap."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from capmix.report.figure import PUBLISHED, Figure, FigureRow, Series
from capmix.report.scene import (
    SIZE,
    Anchor,
    Area,
    Box,
    Dot,
    Line,
    Point,
    Scene,
    Text,
    dodged,
    shortened,
    spread,
    text_width,
)
from capmix.report.wording import change_text, interval_text

SMALL = 11
ROW, PHONE_ROW = 26, 40
PHONE = 480  # figures narrower than this have names above their rows
HEIGHT = 270  # of a plot, without its text
LINE = 15  # pixels between lines of text
MANY = 60  # lines with more points have no markers
DIRECTIONS = (
    (1, 0), (-1, 0), (0, -1), (0, 1), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (-0.7, 0.7),
    (0.4, -0.9), (0.4, 0.9), (-0.4, -0.9), (-0.4, 0.9),
)  # fmt: skip
RINGS = (9, 18, 30, 44, 60, 80, 104)  # distances of a label from its point, in pixels
FAINT = 0.45  # opacity of a point of a cloud, so that dense regions are darker
STAR = 5  # index of the shape in svg.outline
MARKS = "★ highest   ● not distinguishable   ○ lower"


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels: `least` to `start`, `most` to `end`."""

    least: float
    most: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        least, most = self.least, self.most
        if self.log:
            least, most = math.log10(least), math.log10(most)
            value = math.log10(max(value, self.least / 10))
        return self.start + (value - least) / (most - least) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return about `count` round values within the axis."""
        if self.log:
            return self._log_ticks(count)
        step = _round_step((self.most - self.least) / max(count, 1))
        first = math.ceil(self.least / step - 1e-9)
        last = math.floor(self.most / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [digit * 10.0**power for power in powers for digit in digits]
            found = [value for value in found if self.least <= value <= self.most]
            if len(found) <= max(count, 2):
                return found
        return found[:: math.ceil(len(found) / max(count, 2))]


def laid_out(figure: Figure, width: float) -> Scene:
    """Return the figure as a scene that is `width` pixels wide."""
    return _rows(figure, width) if figure.rows else _plot(figure, width)


def _rows(figure: Figure, width: float) -> Scene:
    """Draw a row per recipe. Published rows are last, so that hiding them shortens the scene."""
    phone = width < PHONE
    changes = [_change(row) for row in figure.rows]
    value_width = _widest([f"{row.value:.1f}" for row in figure.rows], bold=True) + 12
    change_width = 0.0 if phone or not any(changes) else _widest(changes, SMALL) + 18
    names = (
        12
        if phone
        else min(_widest([row.name for row in figure.rows], bold=True) + 30, 0.36 * width)
    )
    columns = _Columns(names, width - value_width - change_width - 8, value_width, width, phone)
    scene = Scene(width, 0)
    top = 24.0
    if any(row.mark for row in figure.rows):
        scene.add(Text((0 if phone else columns.left, 12), MARKS, "start", "quiet", SMALL))
        top += LINE + 2
    scene.add(
        Text((0 if phone else columns.left, top - 12), figure.x_label, "start", "quiet", SMALL)
    )
    if change_width:
        head = shortened(f"against {figure.baseline}", change_width, SMALL)
        scene.add(Text((width, top - 12), head, "end", "quiet", SMALL))
    ends = [v for row in figure.rows for v in (row.value, row.low, row.high) if v is not None]
    axis = _padded(ends, columns.left, columns.right)
    places, bottom = _row_places(figure.rows, top + LINE, phone)
    for tick in axis.ticks(_count(columns.right - columns.left)):
        at = axis.at(tick)
        scene.add(Line([(at, top + 8), (at, bottom)], "grid", 1))
        scene.add(Text((at, top + 4), _tick(tick), "middle", "quiet", SMALL))
    base = [row.value for row in figure.rows if row.name == figure.baseline]
    for value in base[:1]:
        at = axis.at(value)
        scene.add(Line([(at, top + 8), (at, bottom)], "quiet", 1.2, (4, 3)))
    group = ""
    for row, place in zip(figure.rows, places, strict=True):
        part = PUBLISHED if row.group.startswith("Published") else ""
        if row.group != group:
            above = place - (PHONE_ROW - 6 if phone else ROW - 4)
            if part:
                scene.short = above - LINE
            group = row.group
            scene.add(Text((0, above), group, "start", "quiet", SMALL, bold=True, part=part))
        _row(scene, row, place, axis, columns, part)
    scene.height = bottom + 4
    scene.short = scene.short or scene.height
    return scene


@dataclass(frozen=True)
class _Columns:
    left: float
    right: float
    value_width: float
    width: float
    phone: bool


def _row_places(rows: Sequence[FigureRow], top: float, phone: bool) -> tuple[list[float], float]:
    """Return the y position of each row's marker, and of the end of the last row."""
    places: list[float] = []
    group, at = "", top
    for row in rows:
        at += PHONE_ROW if phone else ROW
        if row.group != group:
            at += ROW
            group = row.group
        places.append(at - 10)
    return places, at


def _row(scene: Scene, row: FigureRow, at: float, axis: Axis, columns: _Columns, part: str) -> None:
    colour, best = row.colour, row.mark == "best"
    name = f"★ {row.name}" if best else row.name
    room = columns.width - 12 if columns.phone else columns.left - 14
    place: Point = (0, at - 14) if columns.phone else (columns.left - 12, at + 4)
    anchor: Anchor = "start" if columns.phone else "end"
    scene.add(
        Text(place, shortened(name, room / (1.1 if best else 1)), anchor, "ink", SIZE, best, part)
    )
    if row.low is not None and row.high is not None and row.high > row.low:
        ends = [(axis.at(row.low), at), (axis.at(row.high), at)]
        scene.add(Line(ends, colour, 2.2, part=part))
    interval = "" if row.low is None else f" [{row.low:.1f}, {row.high:.1f}]"
    change = _change(row)
    tip = f"{row.name}: {row.value:.1f}%{interval}" + (f"; difference {change}" if change else "")
    hollow = row.mark == "lower" or bool(part)
    shape = STAR if best else 2 if part else 1 if row.group else 0
    radius = 7 if best else 4.8
    scene.add(Dot((axis.at(row.value), at), colour, shape, radius, hollow, tip, part))
    value_end = columns.right + columns.value_width
    scene.add(Text((value_end, at + 4), f"{row.value:.1f}", "end", "ink", SIZE, best, part))
    if change and not columns.phone:
        scene.add(Text((columns.width, at + 4), change, "end", "quiet", SMALL, part=part))


def _change(row: FigureRow) -> str:
    return change_text(*row.difference) if row.difference else ""


# Plots with two axes ---------------------------------------------------------------------------


def _plot(figure: Figure, width: float) -> Scene:
    scene = Scene(width, 0)
    lines = [one for one in figure.series if one.kind == "line"]
    ends = [*[one.short or one.name for one in lines], *[name for name, _ in _levels(figure)]]
    margin = (
        min(_widest(ends, SMALL) + 18, (0.44 if width < PHONE else 0.38) * width) if ends else 12.0
    )
    is_marked = any("lower" in one.marks or "tie" in one.marks for one in figure.series)
    top = 26.0 + LINE * (len(figure.marks) + is_marked)
    if is_marked:
        scene.add(Text((0, 13 + LINE), MARKS, "start", "quiet", SMALL))
    clouds = [one for one in figure.series if one.kind == "cloud"]
    if clouds:
        top = _legend(scene, clouds, width, top)
    bottom = top + HEIGHT
    y_axis = _axis(figure, "y", bottom, top)
    y_ticks = y_axis.ticks(5) if figure.y_label.strip() or not clouds else []
    left = max((text_width(_tick(value), SMALL) for value in y_ticks), default=0) + 10
    right = width - margin
    x_axis = _axis(figure, "x", left, right)
    x_ticks = x_axis.ticks(_count(right - left)) if not clouds else []
    for value in y_ticks:
        at = y_axis.at(value)
        scene.add(Line([(left, at), (right, at)], "grid", 1))
        scene.add(Text((left - 6, at + 4), _tick(value), "end", "quiet", SMALL))
    for value in x_ticks:
        at = x_axis.at(value)
        scene.add(Line([(at, bottom), (at, bottom + 4)], "grid", 1))
    for value in _apart(x_ticks, x_axis):
        scene.add(Text((x_axis.at(value), bottom + 17), _tick(value), "middle", "quiet", SMALL))
    if not clouds:
        scene.add(Line([(left, bottom), (right, bottom)], "grid", 1))
    scene.add(Text((0, 13), shortened(figure.y_label, width, SMALL), "start", "quiet", SMALL))
    scene.add(
        Text((right, bottom + 33), shortened(figure.x_label, right, SMALL), "end", "quiet", SMALL)
    )
    for one in figure.series:
        _series(scene, one, x_axis, y_axis)
    _end_labels(scene, figure, lines, x_axis, y_axis, width)
    _point_labels(scene, figure, x_axis, y_axis, Box(left, top - 8, width, bottom))
    _mark_labels(scene, figure, x_axis, bottom, width)
    scene.height = scene.short = bottom + 40
    return scene


def _legend(scene: Scene, series: Sequence[Series], width: float, top: float) -> float:
    """Draw names with markers, in as many lines as needed; return the top of the plot."""
    x = 0.0
    for one in series:
        name = shortened(one.short or one.name, width - 20, SMALL)
        room = text_width(name, SMALL) + 30
        if x + room > width and x:
            x, top = 0.0, top + LINE + 2
        scene.add(Dot((x + 6, top - 1), one.colour, one.shape, 4.5))
        scene.add(Text((x + 15, top + 3), name, "start", "ink", SMALL))
        x += room
    return top + LINE


def _series(scene: Scene, one: Series, x_axis: Axis, y_axis: Axis) -> None:
    points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(one.x, one.y, strict=True)]
    if one.kind == "steps":
        _steps(scene, one, points, x_axis, y_axis)
        return
    if one.kind == "cloud":
        labels = one.labels or [""] * len(points)
        scene.add(
            *(
                Dot(at, one.colour, one.shape, 1.6, tip=tip, opacity=FAINT)
                for at, tip in zip(points, labels, strict=True)
            )
        )
        return
    if one.kind == "points":
        return  # drawn by _point_labels
    if one.low:
        below = [(x, y_axis.at(low)) for (x, _), low in zip(points, one.low, strict=True)]
        above = [(x, y_axis.at(high)) for (x, _), high in zip(points, one.high, strict=True)]
        scene.add(Area([*above, *reversed(below)], one.colour, 0.13, one.part))
    dash = (6, 4) if one.dashed else ()
    if len(points) > 1:
        scene.add(Line(points, one.colour, 2, dash, one.part))
    if len(points) <= MANY:
        marks = one.marks or [""] * len(points)
        for at, tip, mark in zip(points, _tips(one), marks, strict=True):
            scene.add(_marker(one, at, tip, mark))


def _marker(one: Series, at: Point, tip: str, mark: str) -> Dot:
    if mark == "best":
        return Dot(at, one.colour, STAR, 8, False, tip, one.part)
    return Dot(at, one.colour, one.shape, 4.3, one.hollow or mark == "lower", tip, one.part)


def _steps(scene: Scene, one: Series, points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> None:
    if len(points) < 2:
        return
    half = (points[1][0] - points[0][0]) / 2
    outline = [(x + side, y) for x, y in points for side in (-half, half)]
    base = y_axis.at(y_axis.least)
    scene.add(Area([(outline[0][0], base), *outline, (outline[-1][0], base)], one.colour, 0.16))
    scene.add(Line(outline, one.colour, 1.6))


def _tips(one: Series) -> list[str]:
    labels = one.labels or [one.name] * len(one.x)
    tips = []
    for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        interval = f" {interval_text(one.low[i], one.high[i])}" if one.low else ""
        tips.append(f"{labels[i]}: {x:.4g}, {y:,.4g}{interval}")
    return tips


def _end_labels(
    scene: Scene, figure: Figure, lines: Sequence[Series], x_axis: Axis, y_axis: Axis, width: float
) -> None:
    """Draw the name of each line and level at its right end."""
    right = x_axis.end
    ends = [(x_axis.at(one.x[-1]), y_axis.at(one.y[-1])) for one in lines]
    of_levels = [""] * len(figure.levels) + [PUBLISHED] * len(figure.published)
    for (_, level), part in zip(_levels(figure), of_levels, strict=True):
        at = y_axis.at(level)
        colour, dash = ("#7f7f7f", (1, 3)) if part else ("quiet", (5, 3))
        scene.add(Line([(x_axis.start, at), (right, at)], colour, 1.2, dash, part))
        ends.append((right, at))
    texts = [one.short or one.name for one in lines] + [name for name, _ in _levels(figure)]
    colours = [one.colour for one in lines] + ["quiet"] * len(of_levels)
    parts = [one.part for one in lines] + of_levels
    places = spread([at for _, at in ends], LINE, y_axis.end + 2, y_axis.start - 2)
    for (x, y), place, text, colour, part in zip(ends, places, texts, colours, parts, strict=True):
        if abs(place - y) > 3 or x < right - 2:
            scene.add(Line([(x + 5, y), (right + 10, place)], colour, 0.8, part=part))
        label = shortened(text, width - right - 14, SMALL)
        scene.add(Text((right + 13, place + 4), label, "start", "ink", SMALL, part=part))


def _point_labels(scene: Scene, figure: Figure, x_axis: Axis, y_axis: Axis, bounds: Box) -> None:
    """Draw points without overlap, each with its name in a free place.

    The name of each histogram is near its peak.
    """
    owners = [(one, i) for one in figure.series if one.kind == "points" for i in range(len(one.x))]
    true = [(x_axis.at(one.x[i]), y_axis.at(one.y[i])) for one, i in owners]
    points = dodged(true, 10)
    for (one, i), was, at in zip(owners, true, points, strict=True):
        if math.dist(was, at) > 2:
            scene.add(Line([was, at], one.colour, 1, part=one.part))
        scene.add(_marker(one, at, _tips(one)[i], one.marks[i] if one.marks else ""))
    names = [one.labels[i] if one.labels else one.short or one.name for one, i in owners]
    labels = [name if one.named else "" for (one, _), name in zip(owners, names, strict=True)]
    parts = [one.part for one, _ in owners]
    dots = list(points)
    taken = [_around(at, 6) for at in points]
    taken += _lines_of(figure, x_axis, y_axis)
    texts: list[Box] = []
    colours = ["ink"] * len(points)
    for one in figure.series:
        if one.kind == "steps" and one.x:
            top = max(range(len(one.x)), key=lambda i: one.y[i])
            points.append((x_axis.at(one.x[top]), y_axis.at(one.y[top])))
            labels.append(one.short or one.name)
            parts.append(one.part)
            colours.append(one.colour)
    for at, label, colour, part in zip(points, labels, colours, parts, strict=True):
        if not label:
            continue
        others = [dot for dot in dots if dot != at]
        text = _free_place(at, label, colour, (taken, texts), others, bounds, part)
        if text is not None:
            taken.append(text.box)
            texts.append(text.box)
            edge = _nearest(text.box, at)
            if math.dist(edge, at) > 10:
                scene.add(Line([at, edge], "quiet", 0.7, part=part))
                taken += [_around(one, 1.5) for one in _along(at, edge)[2:]]
            scene.add(text)


def _lines_of(figure: Figure, x_axis: Axis, y_axis: Axis) -> list[Box]:
    """Return what labels must not cover: outlines of histograms and vertical lines."""
    found = []
    for one in figure.series:
        if one.kind == "steps":
            points = zip(one.x, one.y, strict=True)
            found += [_around((x_axis.at(x), y_axis.at(y)), 3) for x, y in points]
    for _, value in figure.marks:
        at = x_axis.at(value)
        found.append(Box(at - 3, y_axis.end, at + 3, y_axis.start))
    return found


def _crosses(first: Point, last: Point, boxes: Sequence[Box]) -> bool:
    """Return whether a line passes through any of the boxes."""
    return any(_around(one, 1).overlaps(box) for one in _along(first, last) for box in boxes)


def _around(at: Point, reach: float) -> Box:
    return Box(at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)


def _nearest(box: Box, at: Point) -> Point:
    """Return the point of a box that is nearest to `at`."""
    return min(max(at[0], box.left), box.right), min(max(at[1], box.top), box.bottom)


def _along(first: Point, last: Point) -> list[Point]:
    """Return points of a line, about 3 pixels apart."""
    steps = max(2, int(math.dist(first, last) // 3))
    return [
        (first[0] + (last[0] - first[0]) * i / steps, first[1] + (last[1] - first[1]) * i / steps)
        for i in range(steps + 1)
    ]


def _meets(first: Point, last: Point, points: Sequence[Point]) -> bool:
    """Return whether a line passes within 6 pixels of any of the points."""
    along = _along(first, last)
    return any(math.dist(one, point) < 6 for one in along for point in points)


def _free_place(
    at: Point,
    label: str,
    colour: str,
    boxes: tuple[Sequence[Box], Sequence[Box]],
    others: Sequence[Point],
    bounds: Box,
    part: str,
) -> Text | None:
    """Return the label at the nearest place where it overlaps nothing; None if there is none.

    Places whose line to the point meets none of `others` and no text are preferred. `boxes` are all
    occupied boxes, and those of texts.
    """
    taken, texts = boxes
    label = shortened(label, 0.5 * (bounds.right - bounds.left), SMALL)
    for may_meet, ring, (dx, dy) in product((False, True), RINGS, DIRECTIONS):
        anchor: Anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
        place = at[0] + dx * ring, at[1] + dy * ring + 4 + (dy < 0) * -2 + (dy > 0) * 3
        text = Text(place, label, anchor, colour, SMALL, bold=colour != "ink", part=part)
        if not text.box.is_within(bounds) or any(text.box.overlaps(one, 1) for one in taken):
            continue
        edge = _nearest(text.box, at)
        if may_meet or not (_meets(edge, at, others) or _crosses(edge, at, texts)):
            return text
    return None


def _mark_labels(scene: Scene, figure: Figure, x_axis: Axis, bottom: float, width: float) -> None:
    for i, (name, value) in enumerate(figure.marks):
        at, y = x_axis.at(value), 26.0 + LINE * i
        scene.add(Line([(at, y + 4), (at, bottom)], "quiet", 1.2, (4, 3)))
        text = f"{name} = {value:.3g}"
        fits = at + text_width(text, SMALL) < width
        scene.add(Text((at if fits else width, y), text, "start" if fits else "end", "ink", SMALL))


def _axis(figure: Figure, which: str, start: float, end: float) -> Axis:
    log = figure.x_log if which == "x" else figure.y_log
    values: list[float] = []
    for one in figure.series:
        values += one.x if which == "x" else [*one.y, *one.low, *one.high]
    values += [value for _, value in (figure.marks if which == "x" else _levels(figure))]
    if log:
        values = [value for value in values if value > 0]
        return Axis(min(values) / 1.15, max(values) * 1.15, start, end, log)
    if which == "y" and any(one.kind == "steps" for one in figure.series):
        return Axis(0, 1.12 * (max(values) or 1), start, end)
    return _padded(values, start, end)


def _levels(figure: Figure) -> list[tuple[str, float]]:
    return [*figure.levels, *figure.published]


def _padded(values: Sequence[float], start: float, end: float) -> Axis:
    least, most = min(values), max(values)
    room = 0.04 * (most - least) or max(abs(most) * 0.05, 0.5)
    return Axis(least - room, most + room, start, end)


def _apart(ticks: Sequence[float], axis: Axis) -> list[float]:
    """Return the ticks whose labels do not overlap."""
    shown: list[float] = []
    edge = -math.inf
    for value in ticks:
        half = text_width(_tick(value), SMALL) / 2
        if axis.at(value) - half > edge + 6:
            shown.append(value)
            edge = axis.at(value) + half
    return shown


def _count(width: float) -> int:
    return min(max(3, int(width // 65)), 9)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * min((1, 2, 2.5, 5, 10), key=lambda digit: abs(math.log(digit * power / step)))


def _tick(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{round(value, 6):g}".replace("-", "−")


def _widest(texts: Iterable[str], size: float = SIZE, bold: bool = False) -> float:
    return max((text_width(text, size, bold) for text in texts), default=0.0)
