"""Figures as PDF and PNG files, for papers."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

from capmix.report.figure import Figure, Series
from capmix.report.interactive import COLOURS
from capmix.storage.store import Store

WIDTH, HEIGHT = 6.4, 3.6  # inches
MARKERS = "osD^X*Pv"


def write_figures(figures: Sequence[Figure], directory: str) -> list[str]:
    """Write `<name>.pdf`, `.png` (200 dots an inch) and `.csv` of each; returns the paths."""
    store = Store(directory)
    paths = []
    for figure in figures:
        canvas = _drawn(figure)
        for form in ("pdf", "png"):
            out = io.BytesIO()
            stamp = {"CreationDate": None} if form == "pdf" else {}
            canvas.savefig(out, format=form, dpi=200, bbox_inches="tight", metadata=stamp)
            store.write_bytes(f"{figure.name}.{form}", out.getvalue())
            paths.append(store.path(f"{figure.name}.{form}"))
        store.write_bytes(f"{figure.name}.csv", figure.csv().encode())
    return paths


def _drawn(figure: Figure) -> Canvas:
    names = bool(figure.series and figure.series[0].y and isinstance(figure.series[0].y[0], str))
    height = 0.9 + 0.26 * len(figure.series[0].y) if names else HEIGHT
    with matplotlib.rc_context({"font.size": 9, "pdf.fonttype": 42, "text.parse_math": False}):
        canvas = Canvas(figsize=(WIDTH, height))
        axes = canvas.add_subplot()
        for number, series in enumerate(figure.series):
            _draw(axes, series, number)
        for name, x in figure.marks:
            axes.axvline(x, color="#444", linestyle="--", linewidth=1, label=f"{name} = {x:.4g}")
        if names:
            axes.invert_yaxis()
        if figure.x_log:
            axes.set_xscale("log")
        if figure.y_log:
            axes.set_yscale("log")
        axes.set_xlabel(figure.x_label)
        axes.set_ylabel(figure.y_label)
        axes.grid(color="#ddd", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if len(figure.series) > 1 or figure.marks:
            axes.legend(frameon=False, fontsize=8)
    return canvas


def _draw(axes: Any, series: Series, number: int) -> None:
    style = {"color": COLOURS[number % len(COLOURS)], "label": series.name}
    line = "-" if series.kind == "line" else ""
    marker = MARKERS[(number + number // len(MARKERS)) % len(MARKERS)]
    if series.kind == "steps":
        axes.step(series.x, series.y, where="mid", **style)
        axes.fill_between(series.x, series.y, step="mid", alpha=0.2, color=style["color"])
    elif series.low:
        names = isinstance(series.y[0], str)
        middle = [float(value) for value in (series.x if names else series.y)]
        below = [value - low for value, low in zip(middle, series.low, strict=True)]
        above = [high - value for value, high in zip(middle, series.high, strict=True)]
        ends = {"xerr" if names else "yerr": [below, above]}
        axes.errorbar(series.x, series.y, fmt=marker + line, **ends, **style)
    else:
        size = 5 if len(series.x) <= 50 else 2
        axes.plot(series.x, series.y, marker + line, markersize=size, **style)
