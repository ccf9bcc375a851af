"""The samples in the report: texts with scores and flags, thumbnails, and decisions."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from capmix.measure.steps import NO_SCORE, steps_of
from capmix.mix.subset import SubsetRows
from capmix.models.images import BadImageError, decode_image
from capmix.pool import Pool, Sample, Shard

THUMBNAIL = 192
LONGEST_TEXT = 600


@dataclass(frozen=True)
class ThresholdSteps:
    """The sources with adjustable thresholds, and the scale of the steps (see measure/steps.py)."""

    sources: Sequence[str]
    unit: int
    scale: int


def example_rows(
    table: pa.Table, sources: Sequence[str], scored: Sequence[str], steps: ThresholdSteps | None
) -> list[dict[str, Any]]:
    """Return samples in the page's format.

    Each has uid, key, shard, `texts` (by source: text, score, flags) and `steps`, the threshold
    step that each source's score reaches.
    """
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


def decisions(rows: SubsetRows, samples: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return the source that a subset chose for each of `samples` (uid and shard).

    None if the subset leaves the sample out. Only the shards of the samples are read.
    """
    chosen: dict[str, dict[str, str]] = {}
    for shard in sorted({sample["shard"] for sample in samples}):
        found = rows.sources_of(shard)
        pairs = zip(found["uid"].to_pylist(), found["source"].to_pylist(), strict=True)
        of_shard = chosen.setdefault(shard, {})
        for uid, source in pairs:
            of_shard.setdefault(uid, source)
    return [chosen[sample["shard"]].get(sample["uid"]) for sample in samples]


def thumbnails(
    pool: Pool, rows: Iterable[Mapping[str, Any]], side: int = THUMBNAIL
) -> dict[str, bytes]:
    """Return WebP thumbnails by uid, at most `side` pixels wide and high.

    Images that cannot be decoded are left out.
    """
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
