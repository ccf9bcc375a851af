"""The report, with samples and images read from the pool on demand."""

from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.measure.population import read_sample, scores_of_texts
from capmix.mix.columns import folders_of, read_samples
from capmix.mix.parts import check_parts
from capmix.mix.subset import SubsetRows
from capmix.report.compare import compare
from capmix.report.examples import decisions, example_rows, thumbnails
from capmix.report.gather import Found
from capmix.report.page import render_page, steps_of_page
from capmix.report.settings import ReportSettings

THUMBNAILS = 2_000  # cached; about 20 MB
ROWS = 10_000  # rows displayed of a shard; a few MB as JSON
READERS = 4  # shards read for images at a time


class Reader:
    """Reads the page's data: images, and rows of one shard or of measures/sample.parquet."""

    def __init__(self, found: Found):
        self.found = found
        self._steps = steps_of_page(found)
        self._shards = {shard.name: shard for shard in found.pool.shards}
        self._locks = [Lock() for _ in range(READERS)]
        self.rows = lru_cache(maxsize=4)(self._rows)
        self.decisions = lru_cache(maxsize=16)(self._decisions)
        self.image = lru_cache(maxsize=THUMBNAILS)(self._image)

    def _rows(self, shard: str) -> tuple[list[dict[str, Any]], int]:
        """Return rows of `shard` (of measures/sample.parquet if ""), and the number of samples.

        If the shard has more than ROWS samples, ROWS evenly spaced ones are returned. Raises
        KeyError for an unknown shard.
        """
        found = self.found
        table = self._of_shard(shard) if shard else read_sample(found.store)
        count = len(table)
        if shard and count > ROWS:
            table = table.take(pa.array(np.linspace(0, count - 1, ROWS).astype(np.int64)))
        return example_rows(table, found.sources, found.scored, self._steps), count

    def _of_shard(self, name: str) -> pa.Table:
        if name not in self._shards:
            raise KeyError(name)
        columns = self.found.columns()
        parts = check_parts(self.found.store, [self._shards[name]], folders_of(columns.values()))
        table = read_samples(self.found.store, name, columns, parts)
        table = scores_of_texts(table, self.found.scored)
        return table.append_column("shard", pa.repeat(pa.scalar(name), len(table)))

    def _decisions(self, subset: str, shard: str) -> list[str | None]:
        """Return the decision for each of `rows(shard)`. Raises KeyError for an unknown subset."""
        if subset not in self.found.subsets:
            raise KeyError(subset)
        return decisions(SubsetRows.pinned(self.found.store, subset), self.rows(shard)[0])

    def _image(self, shard: str, key: str, uid: str) -> bytes:
        """Return a WebP thumbnail. Raises KeyError if the image does not exist or decode."""
        if shard not in self._shards:
            raise KeyError(shard)
        with self._locks[hash(shard) % READERS]:
            row = {"shard": shard, "key": key, "uid": uid}
            return thumbnails(self.found.pool, [row])[uid]


class ReportPages:
    """The report as served: the page, and the data that it requests."""

    def __init__(self, found: Found, token: str):
        reader, settings = Reader(found), ReportSettings()
        compared = compare(found.probes, settings.baseline) if found.probes else []
        self.page = render_page(found, compared, settings, token)[1]
        self.rows, self.decisions, self.image = reader.rows, reader.decisions, reader.image
