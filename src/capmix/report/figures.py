"""The report's figures, as SVG text."""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np

from capmix.report.compare import RecipeResult

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "capmix"  # the same figure gives the same bytes
matplotlib.rcParams["font.family"] = "sans-serif"

from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

COLOURS = ("#4269d0", "#efb118", "#3ca951", "#ff725c", "#a463f2")


def histogram(scores: dict[str, np.ndarray], thresholds: dict[str, float]) -> str:
    """Similarity histograms by source over one axis, thresholds as dashed lines."""
    figure, axes = pyplot.subplots(figsize=(9.6, 3.4))
    low = min(float(values.min()) for values in scores.values())
    high = max(float(values.max()) for values in scores.values())
    bins = np.linspace(low, high, 60).tolist()
    for colour, (source, values) in zip(COLOURS, scores.items(), strict=False):
        label = f"{source} (mean {values.mean():.3f}, {len(values):,} texts)"
        axes.hist(values, bins, histtype="stepfilled", alpha=0.3, color=colour)
        axes.hist(values, bins, histtype="step", linewidth=1.5, color=colour, label=label)
    for name, value in thresholds.items():
        axes.axvline(value, color="#333", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name} = {value:.3f}",
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xlabel("image-text cosine similarity")
    axes.set_ylabel("texts")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return _svg(figure)


def comparison(rows: Sequence[RecipeResult]) -> str:
    """The average of each recipe with its 95 % interval, one row each."""
    figure, axes = pyplot.subplots(figsize=(9.6, 0.32 * len(rows) + 0.9))
    for position, row in enumerate(rows):
        colour = "#999" if row.name.startswith(("control", "oracle")) else COLOURS[0]
        axes.plot([row.average.low, row.average.high], [position] * 2, color=colour, linewidth=2)
        axes.plot(row.average.mean, position, "o", color=colour)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("average of zero-shot accuracy and retrieval recall@5, % (95 % interval)")
    axes.grid(axis="x", color="#ddd")
    axes.set_axisbelow(True)
    return _svg(figure)


def _svg(figure: "matplotlib.figure.Figure") -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]
