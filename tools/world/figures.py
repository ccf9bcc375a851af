"""Figures of a world's results, drawn from its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from world.claims import FILTERED, MIX, ORACLE, RETRIEVAL, ZERO_SHOT, Metric
from world.drawings import object_classes
from world.grid import PERCENTAGES, SCALES, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = {
    "control-raw-shuffled": "raw, shuffled",
    "raw": "raw",
    "control-raw-random30": "random 30% of raw",
    FILTERED: "top 30% of raw",
    "coca": "captions",
    "coca-top30": "top 30% of captions",
    "raw-top30+coca": "top 30% of raw, else caption",
    MIX: "top 30% of raw, else good caption",
    ORACLE: "true texts",
}
LABELS = {ZERO_SHOT: "zero-shot accuracy, 240 classes", RETRIEVAL: "retrieval, recall at 1"}
FEWEST = f"raw-top{min(PERCENTAGES)}"  # where it was run, several fractions were
SMALL = 8  # points


def draw_figures(folder: Path) -> list[Path]:
    """Draw figures beside the tables and return their paths.

    They are recipes, scales, diversity and, if several were run, fractions.
    """
    cells, texts = (pd.read_csv(folder / f"{name}.csv") for name in ("cells", "texts"))
    usual = cells[(cells["noise"] == "usual") & (cells["loss"] == "clip")]
    figures = [
        _saved(folder / "recipes.png", _draw_recipes, usual),
        _saved(folder / "scales.png", _draw_scales, usual),
        _saved(folder / "diversity.png", _draw_diversity, texts),
    ]
    if FEWEST in set(usual["recipe"]):
        figures.append(_saved(folder / "fractions.png", _draw_fractions, usual))
    return figures


def _saved(path: Path, draw: Any, table: pd.DataFrame) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, table)
    figure.savefig(path, dpi=120)
    return path


def _draw_recipes(figure: "Figure", cells: pd.DataFrame) -> None:
    """Draw each recipe as a row: mean, and lowest and highest of the seeds, by pool size."""
    scales, shown = _scales(cells["scale"]), _shown(cells)
    for axes, metric in zip(
        figure.subplots(1, 2, sharey=True), (ZERO_SHOT, RETRIEVAL), strict=True
    ):
        for number, scale in enumerate(scales):
            found = _spread(cells[cells["scale"] == scale.name], metric).reindex(list(shown))
            rows = [row + (number - (len(scales) - 1) / 2) * 0.18 for row in range(len(shown))]
            _points(axes, found, rows, _label(scale), f"C{number}")
        axes.set_yticks(range(len(shown)), list(shown.values()))
        axes.grid(axis="x", alpha=0.3)
        if metric == ZERO_SHOT:
            axes.axvline(1 / len(object_classes()), color="grey", linewidth=1, linestyle=":")
        _finish(axes, LABELS[metric])
    legend = {"loc": "lower right", "fontsize": SMALL, "title_fontsize": SMALL}
    axes.legend(title="pool (samples seen)", **legend)
    figure.suptitle("Mean and range of the seeds; dotted: chance", fontsize=SMALL)


def _draw_scales(figure: "Figure", cells: pd.DataFrame) -> None:
    """Draw accuracy and retrieval by pool size, a line per recipe that was run on every pool."""
    scales = _scales(cells["scale"])
    runs = cells.groupby("recipe")["scale"].nunique()
    drawn = {
        recipe: label for recipe, label in _shown(cells).items() if runs[recipe] == len(scales)
    }
    places, panels = range(len(scales)), figure.subplots(1, 2)
    for axes, metric in zip(panels, (ZERO_SHOT, RETRIEVAL), strict=True):
        found = {one.name: _spread(cells[cells["scale"] == one.name], metric) for one in scales}
        for number, (recipe, label) in enumerate(drawn.items()):
            rows = pd.DataFrame([found[one.name].loc[recipe] for one in scales])
            axes.plot(places, rows["mean"], marker="o", markersize=3, label=label)
            axes.fill_between(places, rows["min"], rows["max"], alpha=0.2, color=f"C{number}")
        axes.set_xticks(places, [_label(scale) for scale in scales])
        axes.set_xlabel("pool (samples seen)", fontsize=SMALL)
        axes.set_ylim(bottom=0)
        _finish(axes, LABELS[metric])
    panels[0].legend(fontsize=SMALL, frameon=False)
    figure.suptitle("Mean and range of the seeds", fontsize=SMALL)


def _draw_fractions(figure: "Figure", cells: pd.DataFrame) -> None:
    """Draw accuracy by kept fraction, of filtering and mixing: a panel per pool with several."""
    forms = {"raw-top{}": "top of raw", "raw-top{}+coca-above": "top of raw, else good caption"}
    scales = _scales(cells.loc[cells["recipe"] == FEWEST, "scale"])
    panels = figure.subplots(1, len(scales), squeeze=False)[0]
    for axes, scale in zip(panels, scales, strict=True):
        found = _spread(cells[cells["scale"] == scale.name], ZERO_SHOT)
        for number, (form, label) in enumerate(forms.items()):
            kept = [one for one in PERCENTAGES if form.format(one) in found.index]
            some = found.loc[[form.format(one) for one in kept]]
            axes.plot(kept, some["mean"], marker="o", markersize=3, label=label)
            axes.fill_between(kept, some["min"], some["max"], alpha=0.2, color=f"C{number}")
        axes.set_xlabel("kept, % of raw texts", fontsize=SMALL)
        axes.set_xticks(PERCENTAGES)
        axes.set_ylim(bottom=0)
        _finish(axes, _label(scale))
    panels[0].set_ylabel(LABELS[ZERO_SHOT], fontsize=SMALL)
    panels[0].legend(fontsize=SMALL, frameon=False)
    figure.suptitle("Mean and range of the seeds, by pool (samples seen)", fontsize=SMALL)


def _draw_diversity(figure: "Figure", texts: pd.DataFrame) -> None:
    """Draw distinct trigrams by source and pool size, and their ratios."""
    left, right = figure.subplots(1, 2)
    table = texts.pivot_table(index="grid", columns="source", values="unique_trigrams")
    scales = [scale for scale in SCALES.values() if f"usual-{scale.name}" in table.index]
    table = table.loc[[f"usual-{scale.name}" for scale in scales]]
    labels = [scale.name for scale in scales]
    for source, label in {"raw": "raw", "coca": "captions", "true": "true"}.items():
        left.plot(labels, table[source], marker="o", markersize=3, label=label)
    left.set_yscale("log")
    left.legend(fontsize=SMALL, frameon=False)
    for source, label in {"raw": "captions / raw", "true": "captions / true"}.items():
        right.plot(labels, table["coca"] / table[source], marker="o", markersize=3, label=label)
    right.set_ylim(bottom=0)
    right.legend(fontsize=SMALL, frameon=False)
    for axes, label in ((left, "distinct trigrams"), (right, "distinct trigrams, ratio")):
        axes.set_xlabel("samples of the pool", fontsize=SMALL)
        _finish(axes, label)


def _points(axes: "Axes", found: pd.DataFrame, rows: list[float], label: str, colour: str) -> None:
    errors = [found["mean"] - found["min"], found["max"] - found["mean"]]
    axes.errorbar(
        found["mean"], rows, xerr=errors, label=label, color=colour, fmt="o", markersize=4
    )


def _spread(cells: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Return mean, min and max over seeds by recipe."""
    evalset, name = metric
    some = cells[(cells["evalset"] == evalset) & (cells["metric"] == name)]
    return some.groupby("recipe")["value"].agg(["mean", "min", "max"])


def _shown(cells: pd.DataFrame) -> dict[str, str]:
    """Return those of SHOWN that were run."""
    run = set(cells["recipe"])
    return {recipe: label for recipe, label in SHOWN.items() if recipe in run}


def _scales(names: pd.Series) -> list[Scale]:
    found = set(names)
    return [scale for scale in SCALES.values() if scale.name in found]


def _label(scale: Scale) -> str:
    return f"{scale.name} ({scale.samples // 1000}k)"


def _finish(axes: "Axes", label: str) -> None:
    axes.set_title(label, fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
