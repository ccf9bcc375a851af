"""Figures for plotly.js. Colours of text and grid are the page's, which may be dark or light."""

from typing import Any

from markupsafe import escape

from capmix.report.figure import Figure, Series

COLOURS = ("#3f7fdc", "#c26a00", "#2b9348", "#d9453d", "#9b5de5", "#0f8b8d", "#b5179e", "#7f7f7f")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "pentagon", "cross")
SHAPES = {"steps": "hvh"}
LONGEST_LABEL = 120


def plotly_figure(figure: Figure) -> dict[str, Any]:
    """`data` and `layout` as plotly.js takes them."""
    layout: dict[str, Any] = {
        "xaxis": _axis(figure.x_label, figure.x_log),
        "yaxis": _axis(figure.y_label, figure.y_log),
        "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": len(figure.series) > 1,
        "height": 320 + 20 * (len(figure.series) // 2),
    }
    if figure.series and figure.series[0].y and isinstance(figure.series[0].y[0], str):
        names = list(dict.fromkeys(str(name) for one in figure.series for name in one.y))
        layout["yaxis"] |= {"autorange": "reversed", "type": "category", "automargin": True}
        layout["height"] = 130 + 26 * len(names)
    layout["shapes"] = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
        | {"line": {"dash": "dash", "width": 1.5, "color": COLOURS[7]}}
        for _, x in figure.marks
    ]
    layout["annotations"] = [
        {"x": x, "y": 1 - 0.07 * i, "yref": "paper", "text": str(escape(name)), "showarrow": False}
        | {"xanchor": "left", "xshift": 4}
        for i, (name, x) in enumerate(figure.marks)
    ]
    return {"data": [_trace(figure, i, one) for i, one in enumerate(figure.series)],
            "layout": layout}  # fmt: skip


def _axis(label: str, log: bool) -> dict[str, Any]:
    return {"title": {"text": str(escape(label))}, "zeroline": False} | (
        {"type": "log"} if log else {}
    )


def _trace(figure: Figure, number: int, series: Series) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    few = len(series.x) <= 50
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": str(escape(series.name)),
        "x": list(series.x),
        "y": list(series.y),
        "mode": {"line": "lines+markers" if few else "lines", "points": "markers"}.get(
            series.kind, "lines"
        ),
        "line": {"color": colour, "width": 2, "shape": SHAPES.get(series.kind, "linear")},
        "marker": {
            "color": colour,
            "size": 9 if few else 5,
            "symbol": SYMBOLS[(number + number // len(SYMBOLS)) % len(SYMBOLS)],
        },
    }
    if series.kind == "steps":
        trace |= {"fill": "tozeroy", "fillcolor": f"{colour}33"}
    if series.low:
        names = isinstance(series.y[0], str)
        middle = [float(v) for v in (series.x if names else series.y)]
        trace["error_x" if names else "error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [high - value for high, value in zip(series.high, middle, strict=True)],
            "arrayminus": [value - low for low, value in zip(series.low, middle, strict=True)],
            "color": colour,
        }
    if series.labels:
        trace["text"] = [str(escape(label[:LONGEST_LABEL])) for label in series.labels]
        trace["hovertemplate"] = "%{text}<br>%{x}, %{y}<extra></extra>"
    return trace
