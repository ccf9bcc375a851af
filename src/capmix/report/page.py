"""Write a self-contained HTML page about one work directory: no network, opens from disk."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.measure.population import read_sample
from capmix.mix.subset import SubsetRows
from capmix.report.captioners import captioners, rank_correlations
from capmix.report.compare import RecipeResult, verdict
from capmix.report.examples import ThresholdSteps, data_url, decisions, example_rows, thumbnails
from capmix.report.figure import Figure
from capmix.report.figures import all_figures
from capmix.report.gather import Found, FoundSubset
from capmix.report.interactive import plotly_figure
from capmix.report.outcomes import of_probes
from capmix.report.settings import ReportSettings
from capmix.report.table import short_name, shown_metrics
from capmix.storage.layout import REPORT, captions_folder
from capmix.storage.store import Store

FIRST_ROWS = 24
PAGE = f"{REPORT}/report.html"
HEADER_SETTINGS = ("revision", "prompt", *CaptionSettings().sampling())
CONTENTS = {
    "recipes": "Recipes",
    "figures": "Figures",
    "captions": "Captions",
    "thresholds": "Try thresholds",
    "samples": "Samples",
    "conservation": "In and out",
    "settings": "Settings",
}


def write_page(
    found: Found,
    rows: Sequence[RecipeResult],
    out: str | None,
    settings: ReportSettings = ReportSettings(),
) -> list[Figure]:
    """Write the page to the local file `out`, or to PAGE in the work directory; its figures.

    Raises UserError where `settings` name a subset that is not there.
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
    """The figures and the page. With a `token` it asks its server for samples and images."""
    _check_names(found, rows, settings)
    shown = _shown_subset(list(found.subsets.values()), settings.examples_of)
    outcomes = found.runs or of_probes(rows)
    of_sources = captioners(found, outcomes)
    figures = all_figures(found, outcomes, of_sources, shown)
    steps = found.population["steps"]
    data = {
        "figures": [
            plotly_figure(figure) | {"name": figure.name, "csv": figure.csv()} for figure in figures
        ],
        "steps": _with_bounds(steps, shown) if steps else None,
        "samples": found.population["samples"],
        "sources": found.sources,
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
    data["about"] = (
        "Samples are read from the pool when they are asked for."
        if token
        else f"{len(data['examples']):,} samples drawn by chance, the same for every recipe."
    )
    plotly, script = plotly_js(), _resource("page.js")
    contents = [
        (anchor, name)
        for anchor, name in CONTENTS.items()
        if (anchor != "recipes" or outcomes) and (anchor != "thresholds" or steps)
    ]
    page = _template().render(
        found=found,
        title=found.pool.location,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=metadata.version("capmix"),
        digest=_digest(found),
        sources=[(name, _source_words(found, name)) for name in found.sources],
        note=settings.note,
        contents=contents,
        outcomes=outcomes,
        rows=rows,
        metrics=shown_metrics(rows),
        verdict=verdict(rows, settings.order),
        baseline=settings.baseline,
        figures=figures,
        overlaps=_overlaps(found),
        captioners=of_sources,
        correlations=rank_correlations(of_sources),
        step=f"{steps['unit'] / steps['scale']:g}" if steps else "",
        policy=_policy([script] if token else [script, plotly], token),
        token=token,
        css=Markup(_resource("page.css")),
        data=Markup(_in_script(json.dumps(data, allow_nan=False))),
        plotly=Markup(plotly),
        script=Markup(script),
    )
    return figures, page


def steps_of_page(found: Found) -> ThresholdSteps | None:
    """The scale of the thresholds that can be moved."""
    steps = found.population["steps"]
    return ThresholdSteps(steps["sources"], steps["unit"], steps["scale"]) if steps else None


def _first_rows(found: Found) -> list[dict[str, Any]]:
    """What a served page shows before it has asked for anything."""
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
        raise UserError(f"no subset {settings.examples_of!r} to show examples of, only {have}")
    trained = [row.name for row in rows]
    if (
        settings.baseline != ReportSettings().baseline
        and trained
        and settings.baseline not in trained
    ):
        raise UserError(f"no probes of {settings.baseline!r} to compare with, only {trained}")


def _shown_subset(subsets: Sequence[FoundSubset], wanted: str | None) -> FoundSubset | None:
    named = [subset for subset in subsets if subset.name == wanted]
    mixed = [subset for subset in subsets if len(subset.recipe["clauses"]) > 1]
    with_threshold = [subset for subset in mixed if subset.summary.thresholds]
    return next(iter([*named, *with_threshold, *mixed, *subsets]), None)


def _with_bounds(steps: dict[str, Any], shown: FoundSubset | None) -> dict[str, Any]:
    """The least and the greatest step of each source; where its threshold starts and whether it is
    used: as in the clauses of the subset that is shown, in their `order`."""
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
    """What a clause asks of its own source's score, where that is all it asks."""
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
    """Where a source's texts come from: the model with its revision and sampling settings."""
    if source == "raw":
        return "the pool's own texts"
    settings = found.settings.get(captions_folder(source), {})
    words = [str(settings.get("model", "imported"))]
    words += [
        f"{name.replace('_', ' ')} {settings[name]}"
        for name in HEADER_SETTINGS
        if settings.get(name) is not None
    ]
    return ", ".join(words)


def _digest(found: Found) -> str:
    """Of all settings of captioners, scorers and recipes."""
    recipes = {name: subset.recipe for name, subset in found.subsets.items()}
    text = json.dumps([found.settings, recipes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _policy(scripts: Sequence[str], token: str) -> str:
    """Nothing runs but these scripts, and nothing is fetched but from the page's own server."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
    allowed += " 'self'" if token else ""  # plotly.js: no other answer of the server is a script
    images = "img-src data: 'self'; connect-src 'self'" if token else "img-src data:"
    return (
        f"default-src 'none'; {images}; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


def _in_script(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plotly_js() -> str:
    """The library as the text of one script element."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")


def _resource(name: str) -> str:
    return (resources.files("capmix.report") / name).read_text("utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["short"] = short_name
    environment.filters["tojson_text"] = lambda value: json.dumps(value, sort_keys=True)
    return environment.from_string(_resource("page.html"))
