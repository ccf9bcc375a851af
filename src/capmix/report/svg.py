"""Render a scene as SVG; the page's CSS sets the colours of text and grid, dark or light."""

import math

from markupsafe import Markup, escape

from capmix.report.scene import Area, Dot, Line, Point, Scene, Shape, Text

SHAPES = 6


def svg(scene: Scene, label: str, kind: str) -> Markup:
    """Return an svg element of class `kind`; text is escaped, tooltips are in data-tip."""
    size = f'viewBox="0 0 {scene.width:g} {scene.height:.0f}" style="max-width:{scene.width:g}px"'
    heights = f'data-height="{scene.height:.0f}" data-short="{scene.short:.0f}"'
    body = "".join(_element(shape) for shape in scene.shapes)
    return Markup(
        f'<svg class="chart {kind}" {size} {heights} role="img" aria-label="{escape(label)}">'
        f"{body}</svg>"
    )


def _element(shape: Shape) -> str:
    match shape:
        case Text():
            weight = ' font-weight="600"' if shape.bold else ""
            about = (
                f'x="{shape.at[0]:.1f}" y="{shape.at[1]:.1f}" font-size="{shape.size:g}"{weight}'
            )
            anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
            words = escape(shape.text)
            return f"<text {about}{anchor}{_paint('fill', shape.colour, shape.part)}>{words}</text>"
        case Area():
            about = f'd="{_path(shape.points)}Z" opacity="{shape.opacity:g}"'
            return f"<path {about}{_paint('fill', shape.colour, shape.part)}/>"
        case Line():
            dash = (
                f' stroke-dasharray="{" ".join(f"{one:g}" for one in shape.dash)}"'
                if shape.dash
                else ""
            )
            about = f'd="{_path(shape.points)}" fill="none" stroke-width="{shape.width:g}"{dash}'
            return f"<path {about}{_paint('stroke', shape.colour, shape.part)}/>"
        case Dot():
            tip = f' data-tip="{escape(shape.tip)}"' if shape.tip else ""
            paint = _paint("stroke" if shape.hollow else "fill", shape.colour, shape.part)
            hollow = ' fill="var(--paper)" stroke-width="2"' if shape.hollow else ""
            faint = f' fill-opacity="{shape.opacity:g}"' if shape.opacity < 1 else ""
            return f'<path d="{_path(outline(shape))}Z"{hollow}{faint}{tip}{paint}/>'


def outline(dot: Dot) -> list[Point]:
    """Return the corners of a marker; a circle is a polygon with 16 corners."""
    x, y = dot.at
    corners, turn, inner = (
        (16, 0.0, 1.0),
        (4, math.pi / 4, 1.0),
        (4, 0.0, 1.0),
        (3, -math.pi / 2, 1.0),
        (3, math.pi / 2, 1.0),
        (10, -math.pi / 2, 0.45),
    )[dot.shape % SHAPES]
    radius = dot.radius * (1.0 if corners == 16 else 1.2)
    found = []
    for i in range(corners):
        angle = turn + 2 * math.pi * i / corners
        reach = radius * (inner if i % 2 else 1.0)
        found.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return found


def _path(points: object) -> str:
    assert isinstance(points, list | tuple)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _paint(what: str, colour: str, part: str) -> str:
    """Return hex colours as attributes; theme colours and parts that can be hidden as classes."""
    classes = [f"{what}-{colour}"] if not colour.startswith("#") else []
    classes += [part] if part else []
    paint = f' {what}="{colour}"' if colour.startswith("#") else ""
    return paint + (f' class="{" ".join(classes)}"' if classes else "")
