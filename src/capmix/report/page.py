"""Write a self-contained HTML page about one work directory: no network, opens from disk."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from capmix.images import BadImageError, decode_image
from capmix.mix.columns import measured_columns
from capmix.mix.mix import FOLDER as SUBSETS
from capmix.mix.mix import Summary
from capmix.mix.table import query, sample_table
from capmix.pool import Pool, Sample
from capmix.report.compare import RecipeResult, verdict
from capmix.report.figures import comparison, histogram
from capmix.report.gather import Found
from capmix.report.table import short_name, shown_metrics
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


def write_page(
    found: Found,
    rows: Sequence[RecipeResult],
    out: str,
    examples_of: str | None = None,
    baseline: str = "raw",
    order: Sequence[str] = (),
    note: str = "",
) -> None:
    """Write the page to the local file `out`.

    `examples_of` names the subset whose choice the examples show (default: the first that mixes
    sources, else the first). `order` names recipes that are expected to rise.
    """
    shown = _shown_subset(list(found.summaries.values()), examples_of)
    columns = measured_columns(found.sources, found.scorer)
    with sample_table(found.store, found.pool, columns) as connection:
        scores = _scores(connection, found.sources)
        examples = _examples(found, connection, shown) if shown else []
    thresholds = {k: v for k, v in (shown.thresholds if shown else {}).items() if v is not None}
    page = _template().render(
        found=found,
        version=metadata.version("capmix"),
        note=note,
        rows=rows,
        metrics=shown_metrics(rows),
        verdict=verdict(rows, order),
        baseline=baseline,
        comparison=Markup(comparison(rows)) if rows else "",
        histogram=Markup(histogram(scores, thresholds)) if scores else "",
        shown=shown,
        examples=examples,
    )
    path = Path(out).resolve()
    Store(str(path.parent)).write_bytes(path.name, page.encode())


def _scores(connection: Any, sources: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores of each source that has any, float32."""
    found = {}
    for source in sources:
        column = query(connection, f"select {source}_score as s from samples").column("s")
        if len(column) > column.null_count:
            found[source] = column.drop_null().to_numpy()
    return found


def _shown_subset(summaries: Sequence[Summary], wanted: str | None) -> Summary | None:
    named = [summary for summary in summaries if summary.name == wanted]
    mixed = [summary for summary in summaries if len(summary.by_clause) > 1]
    return next(iter([*named, *mixed, *summaries]), None)


def _examples(found: Found, connection: Any, shown: Summary) -> list[Example]:
    """The 60 samples with the lowest `draw`: a fair sample, the same for every recipe."""
    subset = found.store.read_table(f"{SUBSETS}/{shown.name}.parquet")
    chosen = dict(
        zip(subset.column("uid").to_pylist(), subset.column("source").to_pylist(), strict=True)
    )
    columns = ", ".join(f"{source}_text, {source}_score" for source in found.sources)
    table = query(
        connection, f"select uid, shard, {columns} from samples order by draw limit {EXAMPLES}"
    )
    rows = [list(row.values()) for row in table.to_pylist()]
    images = _thumbnails(found.pool, {row[0]: row[1] for row in rows})
    examples = []
    for uid, _, *values in rows:
        texts = [
            (source, values[2 * i] or "", values[2 * i + 1], chosen.get(uid) == source)
            for i, source in enumerate(found.sources)
        ]
        examples.append(Example(uid, images.get(uid, ""), texts, uid not in chosen))
    return examples


def _thumbnails(pool: Pool, shard_of: dict[str, str]) -> dict[str, str]:
    """Data URLs of small WebP copies of the images of these uids."""
    urls: dict[str, str] = {}
    for shard in pool.shards:
        wanted = {uid for uid, name in shard_of.items() if name == shard.name}
        for sample in pool.read(shard) if wanted else ():
            if not isinstance(sample, Sample) or sample.uid not in wanted:
                continue
            try:
                image = decode_image(sample.image)
            except BadImageError:
                continue
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.save(out, "WEBP", quality=80)
            urls[sample.uid] = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
            if wanted <= urls.keys():
                break
    return urls


def _template() -> jinja2.Template:
    text = (resources.files("capmix.report") / "page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["short"] = short_name
    return environment.from_string(text)
