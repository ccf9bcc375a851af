"""The paper's figures, of what one work directory holds."""

from collections.abc import Sequence

import numpy as np

from capmix.report.captioners import CaptionerRow
from capmix.report.figure import Figure, Series
from capmix.report.gather import Found, FoundSubset
from capmix.report.interactive import LONGEST_LABEL
from capmix.report.outcomes import RecipeOutcome


def all_figures(
    found: Found,
    outcomes: Sequence[RecipeOutcome],
    rows: Sequence[CaptionerRow],
    shown: FoundSubset | None,
) -> list[Figure]:
    """Those that there are numbers for; `shown` is the subset whose thresholds are drawn in."""
    made = [
        similarity(found, shown),
        recipes(outcomes),
        fractions(found, outcomes),
        *tradeoffs(outcomes),
        *diversity(found),
        *temperatures(rows),
        texts_map(found),
    ]
    return [figure for figure in made if figure is not None]


def similarity(found: Found, shown: FoundSubset | None) -> Figure | None:
    """Histograms of similarity by source, as shares, with the recipe's thresholds."""
    series = []
    for source in found.scored:
        noise = found.population["sources"][source]["noise"]
        if noise["scored"]:
            edges, counts = noise["histogram"]["edges"], noise["histogram"]["counts"]
            middles = ((np.array(edges[1:]) + np.array(edges[:-1])) / 2).tolist()
            width = edges[1] - edges[0]
            density = [count / noise["scored"] / width for count in counts]
            label = f"{source} (mean {noise['mean']:.3f}, {noise['scored']:,} texts)"
            series.append(Series(label, middles, density, "steps"))
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
        "% of texts for each 0.01",
        series,
        marks=marks,
    )


def recipes(outcomes: Sequence[RecipeOutcome]) -> Figure | None:
    """The average of each recipe with its interval."""
    if not outcomes:
        return None
    best = max(outcomes, key=lambda one: one.average)
    ends = "95 % interval" if outcomes[0].of == "probes" else "one standard deviation over seeds"
    one = Series(
        outcomes[0].of,
        [outcome.average for outcome in outcomes],
        [outcome.subset for outcome in outcomes],
        "points",
        [outcome.low for outcome in outcomes],
        [outcome.high for outcome in outcomes],
    )
    about = f"The average of each recipe, with {ends}. Highest: {best.subset}, {best.average:.1f} %"
    return Figure("recipes", "Recipes", about, f"average, % ({ends})", "recipe", [one])


def fractions(found: Found, outcomes: Sequence[RecipeOutcome]) -> Figure | None:
    """The average against the fraction of the pool that is kept, a line for each strategy."""
    by_strategy: dict[str, list[tuple[float, RecipeOutcome]]] = {}
    for outcome in outcomes:
        subset = found.subsets.get(outcome.subset)
        if subset is not None:
            by_strategy.setdefault(subset.strategy, []).append((subset.fraction, outcome))
    series = []
    for strategy, points in by_strategy.items():
        points.sort(key=lambda point: point[0])
        series.append(
            Series(
                strategy,
                [fraction for fraction, _ in points],
                [outcome.average for _, outcome in points],
                "line" if len(points) > 1 else "points",
                [outcome.low for _, outcome in points],
                [outcome.high for _, outcome in points],
                [outcome.subset for _, outcome in points],
            )
        )
    if not series:
        return None
    about = (
        "The average of each recipe against the fraction of the pool that it keeps; recipes that "
        f"differ in the fraction alone are joined. {len(outcomes)} recipes"
    )
    return Figure(
        "fractions",
        "Accuracy against the fraction kept",
        about,
        "rows kept, as a fraction of the pool's samples",
        "average, %",
        series,
    )


def tradeoffs(outcomes: Sequence[RecipeOutcome]) -> list[Figure]:
    """ImageNet (or classification) against the average and against retrieval."""
    made = []
    for name, title in (("average", "the average"), ("retrieval", "retrieval")):
        points = [
            (outcome.classes, getattr(outcome, name), outcome.subset)
            for outcome in outcomes
            if outcome.classes is not None and getattr(outcome, name) is not None
        ]
        if len(points) > 1:
            made.append(
                Figure(
                    f"classes-{name}",
                    f"Classification against {title}",
                    f"{len(points)} recipes, a point each: zero-shot classification and {title}",
                    "ImageNet, or mean zero-shot accuracy, %",
                    f"{title}, %",
                    [Series(name, [x], [y], "points") for x, y, name in points],
                )
            )
    return made


def diversity(found: Found) -> list[Figure]:
    """Unique trigrams and nouns against the number of texts, both on logarithmic axes."""
    sources = found.population["sources"]
    trigrams = [
        Series(source, one["curve"]["texts"], one["curve"]["unique_trigrams"])
        for source, one in sources.items()
        if one["texts"] and one["unique_trigrams"]
    ]
    nouns = []
    for source, one in (found.sampled or {"sources": {}})["sources"].items():
        if one["nouns"]:
            x, y = zip(*one["nouns_curve"], strict=True)
            nouns.append(Series(source, x, y))
    made = []
    for what, series, total in (("trigrams", trigrams, "unique_trigrams"), ("nouns", nouns, None)):
        if series:
            ends = ", ".join(f"{one.name} {one.y[-1]:,}" for one in series)
            made.append(
                Figure(
                    f"diversity-{what}",
                    f"Different {what} against the number of texts",
                    f"Different {what} in growing samples of each source; in the largest: {ends}"
                    + ("" if total else " (on the sample that is tagged)"),
                    "texts",
                    f"different {what}",
                    series,
                    x_log=True,
                    y_log=True,
                )
            )
    return made


def temperatures(rows: Sequence[CaptionerRow]) -> list[Figure]:
    """Of captioners of which several differ in temperature: similarity, diversity and results."""
    by_model: dict[str, list[CaptionerRow]] = {}
    for row in rows:
        if row.temperature is not None:
            by_model.setdefault(row.model, []).append(row)
    swept = {
        model: sorted(of_model, key=lambda row: row.temperature or 0.0)
        for model, of_model in by_model.items()
        if len({row.temperature for row in of_model}) > 1
    }
    made = []
    for what, title in (
        ("similarity", "mean similarity"),
        ("trigrams", "different trigrams"),
        ("average", "average, %"),
    ):
        series = []
        for model, of_model in swept.items():
            known = [row for row in of_model if getattr(row, what) is not None]
            if len(known) > 1:
                x = [float(row.temperature or 0.0) for row in known]
                labels = [row.source for row in known]
                series.append(Series(model, x, [getattr(r, what) for r in known], labels=labels))
        if series:
            made.append(
                Figure(
                    f"temperature-{what}",
                    f"Sampling temperature and {title.removesuffix(', %')}",
                    f"{title} of the captions of each model at several sampling temperatures",
                    "sampling temperature",
                    title,
                    series,
                )
            )
    return made


def texts_map(found: Found) -> Figure | None:
    """t-SNE of text embeddings, all sources over the same axes."""
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
                "points",
                labels=[row["text"][:LONGEST_LABEL] for row in rows],
            )
        )
    about = (
        "A point for each of some texts of each source, near to texts of like meaning; where one "
        "source alone has points, the other does not speak of such things"
    )
    return Figure("map", "Map of texts (t-SNE)", about, "", " ", series)
