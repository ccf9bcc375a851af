"""The samples that the report shows: texts with scores and flags, thumbnails, and decisions."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from capmix.measure.steps import NO_SCORE, steps_of
from capmix.models.images import BadImageError, decode_image
from capmix.pool import Pool, Sample, Shard
from capmix.storage.layout import SUBSETS
from capmix.storage.store import Store

THUMBNAIL = 192
LONGEST_TEXT = 600


@dataclass(frozen=True)
class ThresholdSteps:
    """The sources whose thresholds can be moved, and the scale (see measure/steps.py)."""

    sources: Sequence[str]
    unit: int
    scale: int


def example_rows(
    table: pa.Table, sources: Sequence[str], scored: Sequence[str], steps: ThresholdSteps | None
) -> list[dict[str, Any]]:
    """Samples as the page takes them: uid, key, shard, `texts` (by source: text, score, flags) and
    `steps`, the step that each of the sources' scores reaches."""
    reached: dict[str, list[int | None]] = {}
    for source in steps.sources if steps else ():
        assert steps is not None
        values = table[f"{source}_score"].to_numpy().astype(np.float32)
        found = steps_of(values, steps.unit, steps.scale).tolist()
        reached[source] = [None if step == NO_SCORE else step for step in found]
    rows = []
    for i, row in enumerate(table.to_pylist()):
        texts = {}
        for source in sources:
            text = row[f"{source}_text"]
            score = row[f"{source}_score"] if source in scored else None
            texts[source] = {
                "text": text
                if text is None or len(text) <= LONGEST_TEXT
                else text[:LONGEST_TEXT] + " …",
                "score": None if score is None else float(f"{score:.4f}"),
                "flags": (row.get(f"{source}_flags") or []) if source != "raw" else [],
            }
        rows.append(
            {
                "uid": row["uid"],
                "key": row["key"],
                "shard": row["shard"],
                "texts": texts,
                "steps": [reached[source][i] for source in reached],
            }
        )
    return rows


def decisions(
    store: Store, subset: str, uids: Sequence[str], shard: str | None = None
) -> list[str | None]:
    """The source of the text that a subset has for each uid; None where it left the sample out.

    Where all uids are of one `shard`, the rows of others are not read.
    """
    wanted = pa.array(uids, pa.string())
    chosen: dict[str, str] = {}
    with store.open_table(f"{SUBSETS}/{subset}.parquet") as file:
        column = file.schema_arrow.names.index("shard")
        for group in range(file.num_row_groups):
            bounds = file.metadata.row_group(group).column(column).statistics
            known = shard and bounds is not None and bounds.has_min_max
            if known and not bounds.min <= shard <= bounds.max:
                continue
            rows = file.read_row_group(group, ["uid", "source"], use_threads=False)
            here = rows.filter(pc.is_in(rows["uid"], value_set=wanted))
            pairs = zip(here["uid"].to_pylist(), here["source"].to_pylist(), strict=True)
            for uid, source in pairs:
                chosen.setdefault(uid, source)
    return [chosen.get(uid) for uid in uids]


def thumbnails(
    pool: Pool, rows: Iterable[Mapping[str, Any]], side: int = THUMBNAIL
) -> dict[str, bytes]:
    """WebP copies by uid, `side` pixels at most each way; none of images that do not decode."""
    by_shard: dict[str, dict[str, str]] = {}
    for row in rows:
        by_shard.setdefault(row["shard"], {})[row["key"]] = row["uid"]
    shards = {shard.name: shard for shard in pool.shards}
    found: dict[str, bytes] = {}
    for name, keys in by_shard.items():
        found |= _of_shard(pool, shards[name], keys, side)
    return found


def _of_shard(pool: Pool, shard: Shard, keys: Mapping[str, str], side: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for sample in pool.read(shard, keys):
        if not isinstance(sample, Sample) or sample.key not in keys:
            continue
        try:
            image = decode_image(sample.image)
        except BadImageError:
            continue
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "WEBP", quality=78)
        found[keys[sample.key]] = out.getvalue()
        if len(found) == len(keys):
            break
    return found


def data_url(webp: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(webp).decode()
