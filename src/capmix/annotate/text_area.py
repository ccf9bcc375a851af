"""Text in images: `columns/<name>/<shard>.parquet` with the boxes of texts and their area.

Columns in addition to the status: `area` (share of the image's pixels in boxes, 0 to 1), `boxes`
(their number), and `corners` (x and y of the four corners of each box, in pixels of the upright
image, one after the other), from which `capmix score --mask` fills the boxes.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.batches import BATCH_TIMEOUT, LONGEST_DETAIL, Batches, SampleError, batched
from capmix.engine.prefetch import BATCHES_AHEAD
from capmix.engine.read_ahead import ReadAhead
from capmix.engine.stage import PartWriter, Stage
from capmix.models.device import alone_on_its_core
from capmix.models.images import BadImageError, decode_image
from capmix.models.index import bad_row, pool_inputs
from capmix.models.text_detector import PreparedImage, TextDetector
from capmix.models.text_mask import text_mask
from capmix.pool import BadSample, ImagePool, Sample, Shard
from capmix.storage.layout import annotation_folder
from capmix.storage.rows import FAILED, Row, column_names, table_of

FIELDS = [("area", pa.float32()), ("boxes", pa.int32()), ("corners", pa.list_(pa.int32()))]
_Prepared = tuple[Row, PreparedImage | None]


def text_area_stages(pool: ImagePool, name: str, side: int) -> list[Stage]:
    """Return the stage that finds the texts in a pool's images and writes the annotation `name`.

    `side` is the longest side of the detector's input in pixels. Images that cannot be decoded are
    failed rows.
    """
    detector, batches = TextDetector(side), Batches(BATCH_TIMEOUT)
    images: ReadAhead[Shard, Sample | BadSample, _Prepared] = ReadAhead(
        lambda shard: pool.read(shard),
        lambda sample: _prepared(sample, detector),
        detector.workers,
        detector.batch_size * BATCHES_AHEAD,
        alone_on_its_core(),
    )

    def measured(some: Sequence[PreparedImage]) -> list[tuple[float, int, list[int]]]:
        found = zip(some, detector.find(some), strict=True)
        return [(_share(boxes, one), len(boxes), boxes.ravel().tolist()) for one, boxes in found]

    def run_shard(shard: Shard, out: PartWriter) -> None:
        detector.load()
        rows: list[Row] = []
        for batch in batched(images.of(shard), detector.batch_size):
            done = [finished.result() for _, finished in batch]
            ready = [one for _, one in done if one is not None]
            with out.busy.working(len(ready)):
                found = iter(batches.run(measured, ready))
            rows += [row if one is None else _measured(row, next(found)) for row, one in done]
            for row in rows[-len(done) :]:
                out.count(row.status, row.reason)
        out.write_table(table_of(rows, FIELDS))

    config = {"method": "text_area", **detector.settings}
    # Recipes read all parts together. Parts of other settings have another digest (mix/parts.py).
    config["values"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:32]
    return [
        Stage(
            f"annotate {name}",
            annotation_folder(name),
            config,
            pool_inputs,
            run_shard,
            columns=column_names(FIELDS),
            provenance=detector.provenance,
            ahead=images,
        )
    ]


def _prepared(sample: Sample | BadSample, detector: TextDetector) -> _Prepared:
    if isinstance(sample, BadSample):
        return bad_row(sample), None
    row = Row(sample.uid, sample.key)
    try:
        return row, detector.prepare(decode_image(sample.image))
    except BadImageError as error:
        return Row(sample.uid, sample.key, FAILED, error.reason, str(error)[:LONGEST_DETAIL]), None


def _share(boxes: np.ndarray, image: PreparedImage) -> float:
    """Return the share of the image's pixels that are in boxes."""
    return float(text_mask(boxes, image.size).mean()) if len(boxes) else 0.0


def _measured(row: Row, found: Any) -> Row:
    if isinstance(found, SampleError):
        return Row(row.uid, row.key, FAILED, found.reason, str(found))
    return Row(row.uid, row.key, values=found)
