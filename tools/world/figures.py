"""Figures of a world's results, drawn from its tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from world.claims import FILTERED, MIX, RETRIEVAL, ZERO_SHOT
from world.grid import SCALES
from world.models import World

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = {
    "control-raw-shuffled": "raw, shuffled",
    "raw": "raw",
    "control-raw-random30": "random 30%",
    FILTERED: "raw, top 30%",
    "coca": "captions",
    "coca-top30": "captions, top 30%",
    "raw-top30+coca": "top 30%, else caption",
    MIX: "top 30%, else good caption",
    "oracle-true": "true texts",
}
LABELS = {ZERO_SHOT: "zero-shot accuracy, 240 classes", RETRIEVAL: "retrieval, recall at 1"}


def draw_figures(world: World) -> list[Path]:
    """Draw recipes.png, fractions.png and diversity.png; return their paths."""
    folder = world.folder / "results"
    cells, texts = (pd.read_csv(folder / f"{name}.csv") for name in ("cells", "texts"))
    usual = cells[(cells["noise"] == "usual") & (cells["loss"] == "clip")]
    return [
        _saved(folder / "recipes.png", _draw_recipes, usual),
        _saved(folder / "fractions.png", _draw_fractions, usual),
        _saved(folder / "diversity.png", _draw_diversity, texts),
    ]


def _saved(path: Path, draw: Any, table: pd.DataFrame) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, table)
    figure.savefig(path, dpi=120)
    return path


def _draw_recipes(figure: Any, cells: pd.DataFrame) -> None:
    """Draw the mean and the range over seeds of each recipe by pool size."""
    for axes, metric in zip(figure.subplots(1, 2), (ZERO_SHOT, RETRIEVAL), strict=True):
        for number, (recipe, label) in enumerate(SHOWN.items()):
            found = _by_scale(cells, recipe, metric)
            style = {"marker": "o", "markersize": 3, "color": f"C{number}"}
            is_mix = recipe == MIX
            axes.plot(
                found.index, found["mean"], label=label, linewidth=2.5 if is_mix else 1, **style
            )
            axes.fill_between(
                found.index, found["min"], found["max"], alpha=0.15, color=f"C{number}"
            )
        _finish(axes, LABELS[metric])
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _draw_fractions(figure: Any, cells: pd.DataFrame) -> None:
    """Draw accuracy by kept fraction: one line per pool size, filtering beside mixing."""
    both = figure.subplots(1, 2, sharey=True)
    for axes, form in zip(both, ("raw-top{}", "raw-top{}+coca-above"), strict=True):
        for scale in SCALES:
            some = cells[cells["scale"] == scale]
            found = {
                one: value
                for one in (10, 30, 50, 70)
                if (value := _mean(some, form.format(one))) is not None
            }
            if found:
                axes.plot(list(found), list(found.values()), marker="o", markersize=3, label=scale)
        axes.set_title(
            "top fraction of raw texts" + (", else good caption" * ("+" in form)), fontsize=9
        )
        axes.set_xlabel("kept, % of raw texts", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel(LABELS[ZERO_SHOT], fontsize=8)
    both[1].legend(title="pool", fontsize=7, title_fontsize=7, frameon=False)


def _draw_diversity(figure: Any, texts: pd.DataFrame) -> None:
    """Draw distinct trigrams by source and pool size, and captions' share of the raw texts'."""
    left, right = figure.subplots(1, 2)
    usual = texts[texts["grid"].isin([f"usual-{scale}" for scale in SCALES])]
    table = usual.pivot_table(index="grid", columns="source", values="unique_trigrams")
    table = table.reindex([f"usual-{scale}" for scale in SCALES if f"usual-{scale}" in table.index])
    labels = [name.removeprefix("usual-") for name in table.index]
    for source in ("raw", "coca", "true"):
        left.plot(labels, table[source], marker="o", markersize=3, label=source)
    left.set_yscale("log")
    left.legend(fontsize=7, frameon=False)
    right.plot(labels, table["coca"] / table["raw"], marker="o", markersize=3)
    right.set_ylim(bottom=0)
    for axes, label in ((left, "distinct trigrams"), (right, "trigrams, captions / raw texts")):
        _finish(axes, label)


def _by_scale(cells: pd.DataFrame, recipe: str, metric: tuple[str, str]) -> pd.DataFrame:
    evalset, name = metric
    some = cells[
        (cells["recipe"] == recipe) & (cells["evalset"] == evalset) & (cells["metric"] == name)
    ]
    found = some.groupby("scale")["value"].agg(["mean", "min", "max"])
    return found.reindex([scale for scale in SCALES if scale in found.index])


def _mean(cells: pd.DataFrame, recipe: str) -> float | None:
    found = _by_scale(cells, recipe, ZERO_SHOT)["mean"]
    return None if found.empty else float(found.iloc[0])


def _finish(axes: "Axes", label: str) -> None:
    axes.set_xlabel("samples of the pool", fontsize=8)
    axes.set_title(label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
