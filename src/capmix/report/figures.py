"""Build the paper's figures from one work directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from capmix.report.captioners import CaptionerRow
from capmix.report.differences import Differences
from capmix.report.figure import PUBLISHED, Figure, FigureRow, Mark, Series
from capmix.report.gather import Found, FoundSubset
from capmix.report.headline import is_control
from capmix.report.outcomes import AVERAGE, IMAGENET, RETRIEVAL, RecipeOutcome
from capmix.report.palette import OTHER, Palette
from capmix.report.published import SOURCE, PublishedRow

LONGEST_LABEL = 120
FEWEST_TEXTS = 20  # texts for a histogram
BINS = 50
MOST_NAMES = 12
FEWEST_POINTS = 3  # points for a line
CONTROLS = "Controls and oracles"


@dataclass(frozen=True)
class Compared:
    """Results and their comparisons.

    `marks` compare each recipe with the highest, `differences` include those from `baseline`, and
    `published` are rows of the same scale.
    """

    outcomes: Sequence[RecipeOutcome]
    marks: dict[str, Mark] = field(default_factory=dict)
    differences: Differences | None = None
    baseline: str = "raw"
    published: Sequence[PublishedRow] = ()


def all_figures(
    found: Found,
    compared: Compared,
    rows: Sequence[CaptionerRow],
    shown: FoundSubset | None,
) -> list[Figure]:
    """Return the figures that have data, the main one first.

    `shown` is the subset whose thresholds are drawn.
    """
    palette = Palette(found.sources)
    figures = [
        fractions(found, compared, palette),
        recipes(found, compared, palette),
        imagenet(found, compared, palette),
        *tradeoffs(found, compared, palette),
        similarity(found, shown, palette),
        *diversity(found, palette),
        *temperatures(rows),
        texts_map(found, palette),
    ]
    return [figure for figure in figures if figure is not None]


def recipes(found: Found, compared: Compared, palette: Palette) -> Figure | None:
    """Show the average of each recipe with its interval, highest first.

    Controls and published rows are separate groups.
    """
    if not compared.outcomes:
        return None
    rows = _rows(found, compared, palette)
    highest = compared.outcomes[0].average_of == AVERAGE
    rows += _published(compared.published, AVERAGE) if highest else []
    best = max(rows, key=lambda row: (row.mark == "best", not row.group, row.value))
    ends = _ends(compared.outcomes)
    about = (
        f"The average of each recipe{ends and f', with {ends}'}. Highest: {best.name}, "
        f"{best.value:.1f}%"
    )
    label = f"average, %{ends and f' ({ends})'}"
    baseline = compared.baseline if any(row.difference for row in rows) else ""
    return Figure("recipes", "Recipes", about, label, "recipe", rows=rows, baseline=baseline)


def imagenet(found: Found, compared: Compared, palette: Palette) -> Figure | None:
    """Show ImageNet accuracy of each recipe next to published rows of the same scale."""
    published = _published(compared.published, IMAGENET)
    known = [one for one in compared.outcomes if IMAGENET in one.groups]
    if not known or not published:
        return None
    rows = [
        FigureRow(one.subset, one.groups[IMAGENET], colour=_colour(found, one.subset, palette),
            group=CONTROLS if is_control(found, one.subset) else "")
        for one in known
    ]  # fmt: skip
    rows = sorted(rows, key=lambda row: (row.group, -row.value)) + published
    about = f"ImageNet accuracy of each recipe, and of baselines of the same scale ({SOURCE})"
    return Figure(
        "imagenet", "ImageNet and published baselines", about, "ImageNet accuracy, %", "recipe",
        rows=rows,
    )  # fmt: skip


def _rows(found: Found, compared: Compared, palette: Palette) -> list[FigureRow]:
    rows = []
    for one in compared.outcomes:
        has_interval = one.of == "probes" or one.seeds > 1
        rows.append(
            FigureRow(
                one.subset,
                one.average,
                one.low if has_interval else None,
                one.high if has_interval else None,
                _colour(found, one.subset, palette),
                compared.marks.get(one.subset, ""),
                CONTROLS if is_control(found, one.subset) else "",
                _difference(compared, one.subset),
            )
        )
    return sorted(rows, key=lambda row: (row.group, -row.value))


def _difference(compared: Compared, subset: str) -> tuple[float, float | None, float | None] | None:
    known = compared.differences
    if known is None or subset == compared.baseline or compared.baseline not in known.names:
        return None
    change = known.of(subset, compared.baseline)
    return change.mean, change.low, change.high


def _published(rows: Sequence[PublishedRow], group: str) -> list[FigureRow]:
    head = f"Published, DataComp {rows[0].scale}" if rows else ""
    found = [
        FigureRow(row.name, row.groups[group], colour=OTHER, group=head)
        for row in rows
        if group in row.groups
    ]
    return sorted(found, key=lambda row: -row.value)


def _colour(found: Found, name: str, palette: Palette) -> str:
    subset = found.subsets.get(name)
    return OTHER if subset is None or is_control(found, name) else palette.of(subset.sources)


def _ends(outcomes: Sequence[RecipeOutcome]) -> str:
    if outcomes[0].of == "probes":
        return "95% interval"
    return "± standard deviation over seeds" if max(one.seeds for one in outcomes) > 1 else ""


def fractions(found: Found, compared: Compared, palette: Palette) -> Figure | None:
    """Show the average against the fraction parameter of the recipe.

    Strategies with several fractions are lines; the baseline and published rows are horizontal
    lines.
    """
    by_strategy: dict[str, list[tuple[float, RecipeOutcome]]] = {}
    for outcome in compared.outcomes:
        subset = found.subsets.get(outcome.subset)
        if subset is not None:
            by_strategy.setdefault(subset.strategy, []).append((subset.given, outcome))
    swept = {name: sorted(points, key=lambda point: point[0])
             for name, points in by_strategy.items()
             if len({fraction for fraction, _ in points}) > 1}  # fmt: skip
    if not swept:
        return None
    levels = [
        (one.subset, one.average)
        for one in compared.outcomes
        if one.subset == compared.baseline
        and not any(one is outcome for points in swept.values() for _, outcome in points)
    ]
    series, used = [], dict[str, int]()
    for strategy, points in swept.items():
        colour = _colour(found, points[0][1].subset, palette)
        order = used[colour] = used.get(colour, -1) + 1
        with_ends = all(outcome.of == "probes" or outcome.seeds > 1 for _, outcome in points)
        series.append(
            Series(
                strategy,
                [fraction for fraction, _ in points],
                [outcome.average for _, outcome in points],
                "line",
                [outcome.low for _, outcome in points] if with_ends else (),
                [outcome.high for _, outcome in points] if with_ends else (),
                [outcome.subset for _, outcome in points],
                colour,
                order,
                order % 2 == 1,
                marks=[compared.marks.get(outcome.subset, "") for _, outcome in points],
            )
        )
    ends = _ends(compared.outcomes)
    about = (
        "The average of each recipe against its fraction; lines join recipes that differ only in "
        f"the fraction{ends and f'; bands: {ends}'}"
    )
    return Figure(
        "fractions",
        "Accuracy against the fraction",
        about,
        "fraction of the recipe (raw-top30: 0.3)",
        f"average, %{ends and f' (bands: {ends})'}",
        series,
        levels=levels,
        published=_published_levels(compared),
    )


def _published_levels(compared: Compared) -> list[tuple[str, float]]:
    if any(one.average_of != AVERAGE for one in compared.outcomes):
        return []
    return [(row.name, row.value) for row in _published(compared.published, AVERAGE)]


def tradeoffs(found: Found, compared: Compared, palette: Palette) -> list[Figure]:
    """Show ImageNet (or classification) against the average and against retrieval."""
    figures = []
    outcomes = [one for one in compared.outcomes if not is_control(found, one.subset)]
    for name, title in (("average", "the average"), ("retrieval", "retrieval")):
        points = [
            (one, x, y)
            for one in outcomes
            if (x := one.classes) is not None and (y := getattr(one, name)) is not None
        ]
        group = AVERAGE if name == "average" else RETRIEVAL
        is_imagenet = all(IMAGENET in one.groups for one, _, _ in points)
        classes = "ImageNet accuracy" if is_imagenet else "mean zero-shot accuracy"
        named = _named(found, compared, [one for one, _, _ in points])
        series = [
            Series(
                one.subset, [x], [y], "points",
                colour=_colour(found, one.subset, palette), named=one.subset in named,
                marks=["best" if compared.marks.get(one.subset) == "best" else ""],
            )
            for one, x, y in sorted(points, key=lambda point: point[0].subset not in named[:2])
        ]  # fmt: skip
        if len(points) < FEWEST_POINTS or all(x == y for _, x, y in points):
            continue
        if all({IMAGENET, group} <= one.groups.keys() for one, _, _ in points):
            series += [
                Series(
                    f"{row.name} (published)", [row.groups[IMAGENET]], [row.groups[group]],
                    "points", colour=OTHER, shape=2, hollow=True, short=row.name, part=PUBLISHED,
                )
                for row in compared.published
                if {IMAGENET, group} <= row.groups.keys()
            ]  # fmt: skip
        figures.append(
            Figure(
                f"classes-{name}",
                f"Classification against {title}",
                f"Zero-shot classification and {title} of {len(points)} recipes, one point each",
                f"{classes}, %",
                f"{title.removeprefix('the ')}, %",
                series,
            )
        )
    return figures


def _named(found: Found, compared: Compared, outcomes: Sequence[RecipeOutcome]) -> list[str]:
    """Return the recipes named in a figure, the highest and the baseline first.

    With more than MOST_NAMES recipes, only the highest of each strategy is named.
    """
    order = sorted(outcomes, key=lambda one: -one.average)
    first = [one.subset for one in order[:1]] + [compared.baseline]
    if len(order) <= MOST_NAMES:
        return [*first, *(one.subset for one in order)]
    strategies: dict[str, str] = {}
    for one in order:
        subset = found.subsets.get(one.subset)
        strategies.setdefault(subset.strategy if subset else one.subset, one.subset)
    return [*first, *strategies.values()][:MOST_NAMES]


def similarity(found: Found, shown: FoundSubset | None, palette: Palette) -> Figure | None:
    """Show histograms of similarity by source, as shares, with the recipe's thresholds."""
    series = []
    for source in found.scored:
        noise = found.population["sources"][source]["noise"]
        if noise["scored"] >= FEWEST_TEXTS:
            edges, counts = noise["histogram"]["edges"], noise["histogram"]["counts"]
            middles, density = _density(edges, counts, noise["scored"])
            label = f"{source} (mean {noise['mean']:.3f}, {noise['scored']:,} texts)"
            short = f"{source}, mean {noise['mean']:.3f}"
            colour = palette.of([source])
            series.append(Series(label, middles, density, "steps", colour=colour, short=short))
    if not series:
        return None
    thresholds = shown.summary.thresholds if shown else {}
    scores = tuple(f"threshold({source}_score, " for source in found.scored)
    marks = [
        (name, value)
        for name, value in thresholds.items()
        if value is not None and name.startswith(scores)
    ]
    about = "Histograms of the image-text cosine similarity of each source. " + "; ".join(
        one.name for one in series
    )
    if shown and marks:
        about += f". Dashed: thresholds of {shown.name}"
    return Figure(
        "similarity",
        "Image-text similarity by source",
        about,
        f"cosine similarity ({found.scorer})",
        "% of texts per 0.01",
        series,
        marks=marks,
    )


def _density(
    edges: Sequence[float], counts: Sequence[int], total: int
) -> tuple[list[float], list[float]]:
    """Return the middles of at most BINS bins, merging bins if necessary, and % per 0.01."""
    joined = -(-len(counts) // BINS)
    starts = range(0, len(counts), joined)
    width = edges[1] - edges[0]
    sizes = [len(counts[start : start + joined]) for start in starts]
    sums = [sum(counts[start : start + joined]) for start in starts]
    middles = [edges[start] + width * size / 2 for start, size in zip(starts, sizes, strict=True)]
    density = [count / total / (width * size) for count, size in zip(sums, sizes, strict=True)]
    return middles, density


def diversity(found: Found, palette: Palette) -> list[Figure]:
    """Show distinct trigrams and nouns against the number of texts, on logarithmic axes."""
    trigrams = [
        _curve(source, one["curve"]["texts"], one["curve"]["unique_trigrams"], palette)
        for source, one in found.population["sources"].items()
        if one["texts"] and one["unique_trigrams"]
    ]
    nouns = []
    for source, one in (found.sampled or {"sources": {}})["sources"].items():
        if one["nouns"]:
            x, y = zip(*one["nouns_curve"], strict=True)
            nouns.append(_curve(source, x, y, palette))
    figures = []
    for what, curves, sampled in (("trigrams", trigrams, False), ("nouns", nouns, True)):
        series = [one for one in curves if len(one.x) >= FEWEST_POINTS]
        if series:
            ends = ", ".join(f"{one.name} {one.y[-1]:,}" for one in series)
            figures.append(
                Figure(
                    f"diversity-{what}",
                    f"Distinct {what} against the number of texts",
                    f"Distinct {what} in increasingly large samples of each source; in the largest "
                    f"sample: {ends}" + (" (of tagged texts)" if sampled else ""),
                    "texts",
                    f"distinct {what}",
                    series,
                    x_log=True,
                    y_log=True,
                )
            )
    return figures


def _curve(source: str, x: Sequence[float], y: Sequence[float], palette: Palette) -> Series:
    return Series(source, x, y, colour=palette.of([source]))


def temperatures(rows: Sequence[CaptionerRow]) -> list[Figure]:
    """Show similarity, diversity and results against temperature, for captioners with several."""
    by_model: dict[str, list[CaptionerRow]] = {}
    for row in rows:
        if row.temperature is not None:
            by_model.setdefault(row.model, []).append(row)
    swept = {
        model: sorted(of_model, key=lambda row: row.temperature or 0.0)
        for model, of_model in by_model.items()
        if len({row.temperature for row in of_model}) > 1
    }
    palette = Palette(list(swept))
    figures = []
    for what, title in (
        ("similarity", "mean similarity"),
        ("trigrams", "distinct trigrams"),
        ("average", "average, %"),
    ):
        series = []
        for model, of_model in swept.items():
            known = [row for row in of_model if getattr(row, what) is not None]
            if len(known) > 1:
                x = [float(row.temperature or 0.0) for row in known]
                y, labels = [getattr(r, what) for r in known], [row.source for row in known]
                colour = palette.of([model])
                series.append(Series(model, x, y, labels=labels, colour=colour))
        if series:
            figures.append(
                Figure(
                    f"temperature-{what}",
                    f"Sampling temperature and {title.removesuffix(', %')}",
                    f"{title} of the captions of each model at several sampling temperatures",
                    "sampling temperature",
                    title,
                    series,
                )
            )
    return figures


def texts_map(found: Found, palette: Palette) -> Figure | None:
    """Show a t-SNE map of text embeddings, with all sources on the same axes."""
    table = found.texts_map
    if table is None:
        return None
    series = []
    for source in dict.fromkeys(table["source"].to_pylist()):
        rows = [row for row in table.to_pylist() if row["source"] == source]
        series.append(
            Series(
                source,
                [round(row["x"], 3) for row in rows],
                [round(row["y"], 3) for row in rows],
                "cloud",
                labels=[row["text"][:LONGEST_LABEL] for row in rows],
                colour=palette.of([source]),
            )
        )
    about = (
        "A sample of texts from each source, one point per text; texts of similar meaning are "
        "close together. A region with points of only one source is a topic that the others do "
        "not cover"
    )
    return Figure("map", "Map of texts (t-SNE)", about, "", " ", series)
