"""Write a self-contained HTML page about one work directory: no network, opens from disk."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.measure.coverage import AT_LEAST
from capmix.measure.population import read_sample
from capmix.mix.subset import SubsetRows
from capmix.report.captioners import captioners, rank_correlations
from capmix.report.compare import RecipeResult, order_found
from capmix.report.duplicates import near_duplicates_of
from capmix.report.examples import ThresholdSteps, data_url, decisions, example_rows, thumbnails
from capmix.report.figure import Figure
from capmix.report.figures import CONTROLS, FEWEST_POINTS, Compared, all_figures
from capmix.report.gather import Found, FoundSubset
from capmix.report.headline import differences_of, headline, is_control
from capmix.report.layout import laid_out
from capmix.report.outcomes import AVERAGE, IMAGENET, RETRIEVAL, of_probes
from capmix.report.published import GROUPS, SOURCE, PublishedRow, published
from capmix.report.settings import ReportSettings
from capmix.report.svg import svg
from capmix.report.table import short_name, shown_metrics
from capmix.report.wording import change_text, listed
from capmix.settings.counted import counted
from capmix.storage.layout import REPORT, captions_folder
from capmix.storage.store import Store

FIRST_ROWS = 24
PAGE = f"{REPORT}/report.html"
HEADER_SETTINGS = ("revision", "prompt", *CaptionSettings().sampling())
# Widths of charts in pixels: the main figure, figures side by side, and charts for phones.
MAIN, BESIDE, PHONE = 1148, 548, 356
EPOCH = "SOURCE_DATE_EPOCH"  # environment variable
CONTENTS = {
    "result": "Result",
    "recipes": "Recipes",
    "samples": "Samples",
    "duplicates": "Near duplicates",
    "thresholds": "Try thresholds",
    "figures": "Figures",
    "captions": "Captions",
    "conservation": "Row counts",
    "settings": "Settings",
}


def write_page(
    found: Found,
    rows: Sequence[RecipeResult],
    out: str | None,
    settings: ReportSettings = ReportSettings(),
) -> list[Figure]:
    """Write the page to the local file `out`, or to PAGE in the work directory; return its figures.

    Raises UserError if `settings` name an unknown subset.
    """
    figures, page = render_page(found, rows, settings)
    if out is None:
        found.store.write_bytes(PAGE, page.encode())
    else:
        path = Path(out).resolve()
        Store(str(path.parent)).write_bytes(path.name, page.encode())
    return figures


def render_page(
    found: Found, rows: Sequence[RecipeResult], settings: ReportSettings, token: str = ""
) -> tuple[list[Figure], str]:
    """Return the figures and the page.

    With a `token`, the page loads samples and images from its server. Raises UserError if
    `settings` name an unknown subset.
    """
    _check_names(found, rows, settings)
    shown = _shown_subset(list(found.subsets.values()), settings.examples_of)
    outcomes = found.runs or of_probes(rows)
    summary = headline(found, rows, outcomes, settings.baseline)
    beside = published(found.scale) if settings.published and found.runs else []
    compared = Compared(
        outcomes,
        dict(summary.marks) if summary else {},
        differences_of(found, rows, outcomes) if outcomes else None,
        settings.baseline,
        beside,
    )
    of_sources = captioners(found, outcomes)
    figures = all_figures(found, compared, of_sources, shown)
    steps = found.population["steps"]
    data = {
        "figures": [{"name": figure.name, "csv": figure.csv()} for figure in figures],
        "steps": _with_bounds(steps, shown) if steps else None,
        "samples": found.population["samples"],
        "sources": found.sources,
        "empty": [n for n, one in found.population["sources"].items() if not one["texts"]],
        "scored": found.scored,
        "scorer": found.scorer,
        "subsets": list(found.subsets),
        "shown": shown.name if shown else None,
        "flags": sorted({f for s in found.population["sources"].values() for f in s["flags"]}),
        "api": token,
        "images": found.pool.has_images,
        "shards": [shard.name for shard in found.pool.shards] if token else [],
        "examples": _first_rows(found) if token else _examples(found, settings.examples),
    }
    data["about"] = _about_samples(len(data["examples"]), found.population["samples"], token)
    script = _resource("page.js")
    main = _main_figure(figures) if summary else None
    others = [figure for figure in figures if figure is not main and len(figure.rows) != 1]
    duplicates = near_duplicates_of(found) if found.pool.has_images else []
    missing = {
        "duplicates": not duplicates,
        "result": summary is None,
        "recipes": summary is None,
        "thresholds": steps is None,
        "figures": not others,
    }
    contents = [(anchor, name) for anchor, name in CONTENTS.items() if not missing.get(anchor)]
    at = _written_at()
    page = _template().render(
        found=found,
        name=_pool_name(found.pool.location),
        day=f"{at:%-d %B %Y}",
        facts=_facts(found),
        headline=summary,
        main_figure=main,
        charts={one.name: _charts(one, MAIN if one is main else BESIDE) for one in figures},
        samples_title="Samples" if summary else _captioned(found),
        samples_about=_without_results(found),
        **_tables(found, rows, compared),
        written=f"{at:%Y-%m-%d %H:%M} UTC",
        version=metadata.version("capmix"),
        digest=_digest(found),
        sources=[(name, _source_words(found, name)) for name in found.sources],
        note=settings.note,
        contents=contents,
        duplicates=duplicates,
        rows=rows,
        metrics=shown_metrics(rows),
        verdict=order_found(rows, settings.order),
        baseline=settings.baseline,
        figures=others,
        at_least=AT_LEAST,
        overlaps=_overlaps(found),
        captioners=of_sources,
        correlations=rank_correlations(of_sources),
        step=f"{steps['unit'] / steps['scale']:g}" if steps else "",
        policy=_policy(script, token),
        token=token,
        css=Markup(_resource("page.css")),
        data=Markup(_in_script(json.dumps(data, allow_nan=False))),
        script=Markup(script),
    )
    return figures, page


def _main_figure(figures: Sequence[Figure]) -> Figure | None:
    """Return the figure of the first screen: a sweep over fractions, or the list of recipes.

    None if neither has several points to compare.
    """
    for figure in figures:
        if any(one.kind == "line" and len(one.x) >= FEWEST_POINTS for one in figure.series):
            return figure if figure.name == "fractions" else None
        if len(figure.rows) > 1:
            return figure
    return None


def _charts(figure: Figure, width: float) -> Markup:
    """Draw the figure for screens and for phones; page.css shows one of the two."""
    wide, phone = svg(laid_out(figure, width), figure.about, "wide"), laid_out(figure, PHONE)
    return wide + svg(phone, figure.about, "phone")


def _pool_name(location: str) -> str:
    """Return the last part of the pool's path or URL."""
    return location.rstrip("/").rpartition("/")[2] or location


def _facts(found: Found) -> str:
    """Return one line with the numbers of samples, texts and recipes."""
    facts = [counted(found.population["samples"], "sample")]
    facts.append(f"texts: {listed(_with_texts(found))}")
    if found.subsets:
        facts.append(counted(len(found.subsets), "recipe"))
    return " · ".join(facts)


def _with_texts(found: Found) -> list[str]:
    known = found.population["sources"]
    return [name for name in found.sources if known.get(name, {}).get("texts")] or ["none"]


def _captioned(found: Found) -> str:
    """Return the title of a page without results."""
    images = counted(found.population["samples"], "image")
    written = [name for name in _with_texts(found) if name != "raw" and name != "none"]
    models = [name for name in written if not found.is_of_people(name)]
    origins = [f"captioned by {listed(models)}"] if models else []
    origins += ["edited manually"] if len(models) < len(written) else []
    return f"{images}, {' and '.join(origins) or 'not captioned yet'}"


def _without_results(found: Found) -> str:
    """Return statistics of the texts, and the next command."""
    statistics = []
    for name in _with_texts(found):
        measures = found.population["sources"].get(name)
        if measures:
            noise = measures["noise"] or {}
            mean = noise.get("mean")
            similarity = "" if mean is None else f", similarity {mean:.3f}"
            words = f"{measures['mean_words']:.1f} words per text"
            statistics.append(f"{name}: {words}{similarity}")
    after = "capmix probe" if found.subsets else "capmix mix, then capmix probe"
    return f"{'; '.join([*statistics, 'no results yet'])}. To compare recipes, run {after}."


def _tables(found: Found, rows: Sequence[RecipeResult], compared: Compared) -> dict[str, Any]:
    """Return the rows of the result tables by group, best first, and comparable published rows."""
    groups = {name for one in compared.outcomes for name in one.groups}
    comparable = {name: all(name in one.groups for one in found.runs) for name in groups}
    comparable = dict.fromkeys((AVERAGE, IMAGENET, RETRIEVAL), False) | comparable
    comparable[AVERAGE] &= any(one.average_of == AVERAGE for one in found.runs)
    named = ["ImageNet dist. shifts", "VTAB", *sorted(groups - set(GROUPS.values()))]
    beside = [row for row in compared.published if any(comparable.get(g) for g in row.groups)]

    def changed(subset: str) -> str:
        known = compared.differences
        if known is None or subset == compared.baseline or subset not in known.names:
            return ""
        change = known.of(subset, compared.baseline)
        return change_text(change.mean, change.low, change.high)

    by_mean = sorted(rows, key=lambda row: -row.average.mean)
    return {
        "probe_tables": _apart(found, by_mean, lambda row: row.name),
        "run_tables": _apart(
            found, sorted(found.runs, key=lambda run: -run.average), lambda run: run.subset
        ),
        "run_groups": [name for name in named if comparable.get(name)],
        "classes_head": "ImageNet" if comparable[IMAGENET] else "ImageNet or zero-shot",
        "has_changes": any(row.against_baseline for row in rows),
        "has_differences": bool(found.runs)
        and compared.differences is not None
        and compared.baseline in compared.differences.names,
        "change_of": changed,
        "comparable": comparable,
        "published_rows": beside,
        "has_published": bool(beside),
        "published_note": _published_note(found, compared, beside, comparable),
    }


def _apart(found: Found, rows: Sequence[Any], name: Callable[[Any], str]) -> list[Any]:
    controls = [row for row in rows if is_control(found, name(row))]
    others = [row for row in rows if not is_control(found, name(row))]
    return [(group, some) for group, some in (("", others), (CONTROLS, controls)) if some]


def _published_note(
    found: Found,
    compared: Compared,
    beside: Sequence[PublishedRow],
    comparable: Mapping[str, bool],
) -> str:
    """Describe the published rows, or why there are none."""
    if not found.runs or not compared.published:
        return ""
    if not beside:
        return (
            f"No published baselines are shown: the runs have DataComp's scale {found.scale}, but "
            "were not evaluated on all tasks of any group."
        )
    average = {AVERAGE: "the average of 38 tasks"}
    same = [average.get(name, name) for name, is_same in comparable.items() if is_same]
    text = f"Published: {SOURCE}; scale {found.scale}, one run each; compared on {listed(same)}."
    if not comparable[AVERAGE]:
        text += " Averages are not compared: these runs were evaluated on other tasks than the 38."
    return text


def steps_of_page(found: Found) -> ThresholdSteps | None:
    """Return the sources and the scale of the adjustable thresholds."""
    steps = found.population["steps"]
    return ThresholdSteps(steps["sources"], steps["unit"], steps["scale"]) if steps else None


def _written_at() -> datetime:
    """Return SOURCE_DATE_EPOCH, the convention of reproducible builds, or the current time."""
    seconds = os.environ.get(EPOCH)
    if not seconds:
        return datetime.now(UTC)
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(
            f"{EPOCH}={seconds[:40]!r}: expected seconds since 1970, such as 1767225600"
        ) from error


def _about_samples(shown: int, samples: int, token: str) -> str:
    if token:
        return "Samples are read from the pool on demand."
    if shown == samples:
        return ""
    return f"{counted(shown, 'sample')} drawn at random, the same for every recipe."


def _first_rows(found: Found) -> list[dict[str, Any]]:
    """Return the samples that a served page shows before its first request."""
    table = read_sample(found.store).slice(0, FIRST_ROWS)
    return example_rows(table, found.sources, found.scored, steps_of_page(found))


def _examples(found: Found, count: int) -> list[dict[str, Any]]:
    table = read_sample(found.store).slice(0, count)
    rows = example_rows(table, found.sources, found.scored, steps_of_page(found))
    images = thumbnails(found.pool, rows) if found.pool.has_images else {}
    of_subset = {
        name: decisions(SubsetRows.pinned(found.store, name), rows) for name in found.subsets
    }
    for i, row in enumerate(rows):
        row["image"] = data_url(images[row["uid"]]) if row["uid"] in images else None
        row["decisions"] = {name: chosen[i] for name, chosen in of_subset.items()}
    return rows


def _check_names(found: Found, rows: Sequence[RecipeResult], settings: ReportSettings) -> None:
    have = ", ".join(found.subsets) or "none"
    if settings.examples_of is not None and settings.examples_of not in found.subsets:
        raise UserError(f"--examples-of: no subset {settings.examples_of!r}; found {have}")
    trained = [row.name for row in rows]
    if (
        settings.baseline != ReportSettings().baseline
        and trained
        and settings.baseline not in trained
    ):
        raise UserError(
            f"--baseline: no probes of subset {settings.baseline!r}; found {', '.join(trained)}"
        )


def _shown_subset(subsets: Sequence[FoundSubset], wanted: str | None) -> FoundSubset | None:
    named = [subset for subset in subsets if subset.name == wanted]
    mixed = [subset for subset in subsets if len(subset.recipe["clauses"]) > 1]
    with_threshold = [subset for subset in mixed if subset.summary.thresholds]
    return next(iter([*named, *with_threshold, *mixed, *subsets]), None)


def _with_bounds(steps: dict[str, Any], shown: FoundSubset | None) -> dict[str, Any]:
    """Add the bounds of each source's steps, and the initial thresholds.

    `start`, `used` and `order` follow the clauses of the shown subset.
    """
    sources = steps["sources"]
    known = [[c[i] for c in steps["cells"] if c[i] is not None] for i in range(len(sources))]
    least, most = [min(one, default=0) for one in known], [max(one, default=0) for one in known]
    start, used = list(least), [shown is None] * len(sources)
    order: list[int] = []
    for clause in shown.recipe["clauses"] if shown else []:
        if clause["source"] in sources and sources.index(clause["source"]) not in order:
            at = sources.index(clause["source"])
            order.append(at)
            used[at] = True
            value = _score_threshold(clause, shown.summary.thresholds if shown else {})
            if value is not None:
                step = round(value * steps["scale"] / steps["unit"])
                start[at] = min(max(step, least[at]), most[at])
    if not order:
        used = [True] * len(sources)
    order += [i for i in range(len(sources)) if i not in order]
    bounds = {"least": least, "most": most, "start": start, "used": used, "order": order}
    return steps | bounds


def _score_threshold(
    clause: Mapping[str, Any], thresholds: Mapping[str, float | None]
) -> float | None:
    """Return a clause's threshold on its own source's score; None if it has another condition."""
    score = re.escape(f"{clause['source']}_score")
    top = re.fullmatch(rf"top\(({score}, [\d.]+)\)", clause["where"])
    least = re.fullmatch(rf"{score} >= (.+)", clause["where"])
    if top is not None:
        return thresholds.get(f"threshold({top[1]})")
    if least is None:
        return None
    try:
        return float(least[1])
    except ValueError:
        return thresholds.get(least[1])


def _overlaps(found: Found) -> dict[tuple[str, str], float | None]:
    pairs = found.sampled["overlap"] if found.sampled else []
    return {(pair["first"], pair["second"]): pair["words"] for pair in pairs}


def _source_words(found: Found, source: str) -> str:
    """Describe the origin of a source's texts: the model, its revision and sampling settings."""
    if source == "raw":
        return "the pool's own texts"
    if found.is_of_people(source):
        return "edited manually in capmix view"
    settings = found.settings.get(captions_folder(source), {})
    words = [str(settings.get("model", "imported"))]
    words += [
        f"{name.replace('_', ' ')} {settings[name]}"
        for name in HEADER_SETTINGS
        if settings.get(name) is not None
    ]
    return ", ".join(words)


def _digest(found: Found) -> str:
    """Return a digest of all settings of captioners, scorers and recipes."""
    recipes = {name: subset.recipe for name, subset in found.subsets.items()}
    text = json.dumps([found.settings, recipes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _policy(script: str, token: str) -> str:
    """Return a policy that allows only this script, and requests only to the page's own server."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    images = "img-src data: 'self'; connect-src 'self'" if token else "img-src data:"
    return (
        f"default-src 'none'; {images}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _in_script(text: str) -> str:
    """Escape JSON so that it cannot close the surrounding script element."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _unbroken(text: str) -> str:
    """Replace spaces within numbers and intervals by non-breaking ones."""
    text = re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)
    return re.sub(r" (?=[%±])|(?<=±) ", "\u00a0", text)


def _resource(name: str) -> str:
    return (resources.files("capmix.report") / name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["short"] = short_name
    environment.filters["unbroken"] = _unbroken
    environment.filters["tojson_text"] = lambda value: json.dumps(value, sort_keys=True)
    return environment.from_string(_resource("page.html"))
