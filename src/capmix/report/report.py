"""Write a self-contained HTML page about one work directory: no network, opens from disk."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from capmix.evaluate.evaluate import Result
from capmix.images import BadImage, decode_image
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.mix.mix import Summary
from capmix.mix.table import sample_table
from capmix.pool import Pool, Sample
from capmix.report.compare import RecipeResult, compare, verdict
from capmix.report.figures import comparison, histogram
from capmix.store import Store

EXAMPLES = 60
THUMBNAIL = 160


@dataclass(frozen=True)
class Example:
    """One sample as the page shows it. `texts` holds (source, text, score, chosen)."""

    uid: str
    image: str
    texts: list[tuple[str, str, float | None, bool]]
    left_out: bool


def report(
    store: Store,
    pool: Pool,
    scorer: str,
    sources: Sequence[str],
    summaries: Sequence[Summary],
    measures: dict[str, dict[str, Any]],
    results: dict[str, list[Result]],
    out: str,
    examples_of: str | None = None,
    baseline: str = "raw",
    order: Sequence[str] = (),
    note: str = "",
) -> str:
    """Write the page to `out` and `results.json` beside the work directory's results; returns `out`.

    `examples_of` names the subset whose choice the examples show (default: the first that mixes
    sources, else the first).
    """
    shown = _shown_subset(summaries, examples_of)
    rows = compare(results, baseline) if results else []
    connection = sample_table(store, pool, scorer, sources, seed=0)
    scores: dict[str, np.ndarray] = {}
    for source in sources:
        found = connection.execute(f"select {source}_score as s from samples").fetchnumpy()["s"]
        scores[source] = np.ma.compressed(np.ma.masked_invalid(found))
    thresholds = {k: v for k, v in (shown.thresholds if shown else {}).items() if v is not None}
    page = _template().render(
        pool=pool.location,
        version=metadata.version("capmix"),
        note=note,
        summaries={summary.name: summary for summary in summaries},
        rows=rows,
        verdict=verdict(rows, order),
        baseline=baseline,
        comparison=Markup(comparison(rows)) if rows else "",
        histogram=Markup(histogram({k: v for k, v in scores.items() if len(v)}, thresholds)),
        thresholds=thresholds,
        measures=measures,
        shown=shown,
        examples=_examples(store, pool, connection, sources, shown) if shown else [],
        counts=_conservation(store),
        models=_models(store),
    )
    Store(out.rpartition("/")[0] or ".").write_bytes(out.rpartition("/")[2], page.encode())
    return out


def results_table(rows: Sequence[RecipeResult], summaries: Sequence[Summary]) -> list[str]:
    """The table of recipes as text lines for a terminal."""
    kept = {summary.name: summary for summary in summaries}
    if not rows:
        return []
    metrics = list(rows[0].metrics)
    shown = [name for name in metrics if name.endswith(("acc1", "recall@1", "recall@5"))]
    heads = [_short(name) for name in shown]
    width = max(len(row.name) for row in rows)
    head = f"{'recipe':<{width}} {'samples':>8} " + " ".join(f"{h:>11}" for h in heads)
    lines = [head + f" {'average [95 %]':>20} {'against raw [95 %]':>22}"]
    for row in rows:
        cells = (f"{row.metrics[name][0]:5.1f} ±{row.metrics[name][1]:4.1f}" for name in shown)
        average, change = row.average, row.against_baseline
        text = f"{average.mean:5.1f} [{average.low:5.1f}, {average.high:5.1f}]"
        against = f"{change.mean:+5.1f} [{change.low:+5.1f}, {change.high:+5.1f}]" if change else ""
        count = kept[row.name].kept if row.name in kept else 0
        body = " ".join(f"{cell:>11}" for cell in cells)
        lines.append(f"{row.name:<{width}} {count:>8,} {body} {text:>20} {against:>22}")
    return lines


def _short(metric: str) -> str:
    name = metric.rpartition("/")[2]
    return (
        name.replace("text_retrieval_recall@", "i->t R@")
        .replace("image_retrieval_recall@", "t->i R@")
        .replace("acc1", "zero-shot")
    )


def _shown_subset(summaries: Sequence[Summary], wanted: str | None) -> Summary | None:
    named = [summary for summary in summaries if summary.name == wanted]
    mixed = [summary for summary in summaries if len(summary.by_clause) > 1]
    return next(iter([*named, *mixed, *summaries]), None)


def _examples(
    store: Store, pool: Pool, connection: Any, sources: Sequence[str], shown: Summary
) -> list[Example]:
    """The 60 samples with the lowest `draw`: a fair sample, the same for every recipe."""
    subset = store.read_table(f"{SUBSETS}/{shown.name}.parquet")
    chosen = dict(
        zip(subset.column("uid").to_pylist(), subset.column("source").to_pylist(), strict=True)
    )
    columns = ", ".join(f"{source}_text, {source}_score" for source in sources)
    rows = connection.execute(
        f"select uid, shard, {columns} from samples order by draw limit {EXAMPLES}"
    ).fetchall()
    images = _thumbnails(pool, {row[0]: row[1] for row in rows})
    examples = []
    for uid, _, *values in rows:
        texts = [
            (source, values[2 * i] or "", values[2 * i + 1], chosen.get(uid) == source)
            for i, source in enumerate(sources)
        ]
        examples.append(Example(uid, images.get(uid, ""), texts, uid not in chosen))
    return examples


def _thumbnails(pool: Pool, shard_of: dict[str, str]) -> dict[str, str]:
    """Data URLs of small WebP copies of the images of these uids."""
    found: dict[str, str] = {}
    for shard in pool.shards:
        wanted = {uid for uid, name in shard_of.items() if name == shard.name}
        for sample in pool.read(shard) if wanted else ():
            if not isinstance(sample, Sample) or sample.uid not in wanted:
                continue
            try:
                image = decode_image(sample.image)
            except BadImage:
                continue
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.save(out, "WEBP", quality=80)
            found[sample.uid] = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
            if wanted <= found.keys():
                break
    return found


def _conservation(store: Store) -> list[dict[str, Any]]:
    """Rows in, ok, dropped and failed of every stage folder, summed over its parts."""
    rows: dict[str, dict[str, Any]] = {}
    for top in ("samples", "embeddings", "captions", "scores", "subsets"):
        for part in store.parts(top):
            marker = store.read_marker(part)
            if marker is None:
                continue
            folder = part if top == "subsets" else part.rpartition("/")[0]
            row = rows.setdefault(
                folder, {"stage": folder, "in": 0, "ok": 0, "dropped": {}, "failed": {}}
            )
            row["in"] += marker.rows_in
            row["ok"] += marker.counts.ok
            for kind in ("dropped", "failed"):
                for reason, count in getattr(marker.counts, kind).items():
                    row[kind][reason] = row[kind].get(reason, 0) + count
    return list(rows.values())


def _models(store: Store) -> dict[str, str]:
    """The settings of each captioner and scorer, from the first marker of each folder."""
    found: dict[str, str] = {}
    for top in ("captions", "scores"):
        for part in store.parts(top):
            folder = part.rpartition("/")[0]
            marker = store.read_marker(part)
            if folder not in found and marker is not None:
                found[folder] = json.dumps(marker.config, sort_keys=True)
    return found


def _template() -> jinja2.Template:
    text = (resources.files("capmix.report") / "page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["short"] = _short
    return environment.from_string(text)
