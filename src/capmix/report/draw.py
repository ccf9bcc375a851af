"""Write figures as PDF and PNG files, for papers."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from capmix.report.figure import Figure
from capmix.report.layout import laid_out
from capmix.report.scene import Area, Dot, Line, Scene, Shape, Text
from capmix.report.svg import outline
from capmix.storage.store import Store

WIDTH = 6.4  # inches
PIXELS = 620  # width of the layout, which makes its text 8 to 9 points
THEME = {"ink": "#1b1f27", "quiet": "#545c69", "grid": "#dfe3e9", "paper": "#ffffff"}
MARGIN = 6  # pixels around the layout
INCH = WIDTH / (PIXELS + 2 * MARGIN)  # inches per pixel
PER_PIXEL = 72 * INCH  # points per pixel


def write_figures(figures: Sequence[Figure], directory: str) -> list[str]:
    """Write `<name>.pdf`, `.png` (200 dpi) and `.csv` of each figure.

    Returns the paths of the PDF and PNG files.
    """
    store = Store(directory)
    paths = []
    for figure in figures:
        canvas = _drawn(laid_out(figure, PIXELS))
        for form in ("pdf", "png"):
            out = io.BytesIO()
            stamp = {"CreationDate": None} if form == "pdf" else {}
            with matplotlib.rc_context({"pdf.fonttype": 42, "text.parse_math": False}):
                canvas.savefig(out, format=form, dpi=200, metadata=stamp)
            store.write_bytes(f"{figure.name}.{form}", out.getvalue())
            paths.append(store.path(f"{figure.name}.{form}"))
        store.write_bytes(f"{figure.name}.csv", figure.csv().encode())
    return paths


def _drawn(scene: Scene) -> Canvas:
    with matplotlib.rc_context({"text.parse_math": False, "font.family": "DejaVu Sans"}):
        width, height = scene.width + 2 * MARGIN, scene.height + 2 * MARGIN
        canvas = Canvas(figsize=(width * INCH, height * INCH), facecolor="white")
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_xlim(-MARGIN, width - MARGIN)
        axes.set_ylim(height - MARGIN, -MARGIN)
        axes.set_axis_off()
        for order, shape in enumerate(scene.shapes):
            _draw(axes, shape, order)
    return canvas


def _draw(axes: matplotlib.axes.Axes, shape: Shape, order: int) -> None:
    colour = THEME.get(shape.colour, shape.colour)
    match shape:
        case Text():
            axes.text(
                *shape.at, shape.text, color=colour, fontsize=shape.size * PER_PIXEL, zorder=order,
                ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
                va="baseline", fontweight="bold" if shape.bold else "normal",
            )  # fmt: skip
        case Area():
            patch = Polygon(list(shape.points), color=colour, alpha=shape.opacity, lw=0)
            patch.set_zorder(order)
            axes.add_patch(patch)
        case Line():
            x, y = zip(*shape.points, strict=True)
            style = (0, tuple(one / shape.width for one in shape.dash)) if shape.dash else "-"
            axes.add_line(
                Line2D(x, y, color=colour, lw=shape.width * PER_PIXEL, ls=style, zorder=order)
            )
        case Dot():
            face = THEME["paper"] if shape.hollow else colour
            width = 2 * PER_PIXEL if shape.hollow else 0
            patch = Polygon(
                outline(shape), facecolor=face, edgecolor=colour, lw=width, alpha=shape.opacity
            )
            patch.set_zorder(order)
            axes.add_patch(patch)
