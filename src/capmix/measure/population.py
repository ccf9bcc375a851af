"""Measure diversity, noise and agreement in one pass over a pool, and draw a random sample.

Writes `measures/population.json` and `measures/sample.parquet`. The latter has the samples with the
lowest draws: uid, shard, key, draw, size, and for each source its text, flags and score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.mapped import mapper
from capmix.engine.progress import progress
from capmix.engine.settings import EngineSettings
from capmix.measure.diversity import Diversity, SketchedDiversity, Split, split_batch
from capmix.measure.noise import Noise, agreement
from capmix.measure.settings import MeasureSettings
from capmix.measure.steps import StepCounts
from capmix.mix.columns import Column, columns_of, folders_of, one_array, read_samples
from capmix.mix.parts import Parts, check_parts, refuse_rewritten, shard_batches
from capmix.mix.plan import DRAW, locked_connection
from capmix.pool import Pool
from capmix.settings.base import defaults_of
from capmix.storage.draft import Draft
from capmix.storage.layout import MEASURES, texts_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

PART = f"{MEASURES}/population"
DEFAULTS = defaults_of(MeasureSettings)
SAMPLE = f"{MEASURES}/sample"
ROWS_AT_ONCE = 100_000
SMALLEST_LEVEL = 300  # texts; for fewer, a count of distinct trigrams is meaningless


Counted = Diversity | SketchedDiversity


@dataclass(frozen=True)
class Batch:
    """Counts of a few shards.

    `samples` is their number of samples, and `sampled` those in the random sample. By source:
    scores, texts (split into words, or as a sketch), counts of flags, and the number of texts that
    the scorer truncated.
    """

    samples: int
    sampled: pa.Table
    scores: dict[str, pa.ChunkedArray]
    texts: "dict[str, Split | SketchedDiversity]"
    flags: dict[str, dict[str, int]]
    truncated: dict[str, int]


@dataclass(frozen=True)
class Population:
    """The inputs: `sources` to measure; those in `scored` have scores by `scorer`."""

    store: Store
    pool: Pool
    scorer: str | None
    sources: Sequence[str]
    scored: Sequence[str]
    settings: MeasureSettings

    def columns(self) -> dict[str, Column]:
        scored = {self.scorer: self.scored} if self.scorer else {}
        found = columns_of(self.sources, scored, self.scorer, {}, ("width", "height"))
        fields = ("text", "flags", "score", "truncated")
        wanted = {f"{source}_{field}" for source in self.sources for field in fields}
        return {name: one for name, one in found.items() if name in {*wanted, "width", "height"}}


def measure_population(
    population: Population, engine: EngineSettings = EngineSettings()
) -> dict[str, Any]:
    """Return the measures of each source (`sources`), the agreement of each pair (`agreement`),
    `steps` (see StepCounts) and the `digests` of the folders read."""
    columns = population.columns()
    store = population.store
    parts = check_parts(store, population.pool.shards, folders_of(columns.values()))
    settings = population.settings
    config = {
        "scorer": population.scorer,
        "sources": list(population.sources),
        "scored": list(population.scored),
        "columns": {name: asdict(column) for name, column in sorted(columns.items())},
    } | settings.model_dump(include={"sketch", "sample", "seed"})

    def make(draft: Draft) -> Marker:
        found = _measure(population, columns, parts, draft, engine)
        refuse_rewritten(store, parts)
        rows = sum(parts.rows.values())
        counts = Counts(ok=found["samples"])
        counts.dropped.update({"no sample": rows - found["samples"]})
        return Marker(parts.digests, config, rows, counts, found)

    marker, _ = once(store, PART, parts.digests, config, make, DEFAULTS, [f"{SAMPLE}.parquet"])
    return marker.extra | {"digests": marker.inputs}


def read_sample(store: Store) -> pa.Table:
    """Return the samples with the lowest draws, in ascending order."""
    return store.read_table(f"{SAMPLE}.parquet", part=PART)


def scores_of_texts(table: pa.Table, scored: Sequence[str]) -> pa.Table:
    """Remove scores without a text, which can be imported: no recipe uses such a row."""
    for source in scored:
        place = table.schema.get_field_index(f"{source}_score")
        has_text = pc.is_valid(table[f"{source}_text"])
        if not pc.all(has_text).as_py():
            scores = pc.if_else(has_text, table.column(place), pa.scalar(None, pa.float32()))
            table = table.set_column(place, f"{source}_score", scores)
    return table


def text_digests(digests: Mapping[str, str], sources: Sequence[str]) -> dict[str, str]:
    """Return the digests of the folders with the texts of `sources`."""
    return {texts_folder(source): digests[texts_folder(source)] for source in sources}


def levels_of(samples: int) -> list[int]:
    """Return the sizes of nested samples: 300, 1,000, 3,000, ..., and finally all samples."""
    sizes, size = [], SMALLEST_LEVEL
    while size < samples:
        sizes.append(size)
        size = size * 10 // 3 if str(size).startswith("3") else size * 3
    return [*sizes, samples]


def _measure(
    population: Population,
    columns: Mapping[str, Column],
    parts: Parts,
    draft: Draft,
    engine: EngineSettings,
) -> dict[str, Any]:
    rows = sum(parts.rows.values())
    levels = levels_of(rows)
    settings = population.settings
    noise = {source: Noise() for source in population.scored}
    truncated, flags = Counter[str](), {source: Counter[str]() for source in population.sources}
    steps = StepCounts(list(population.scored))
    sampled: list[pa.Table] = []
    samples = 0
    with population.store.scratch() as scratch:
        counters: dict[str, Counted] = {
            source: SketchedDiversity(len(levels))
            if settings.sketch
            else Diversity(Path(scratch) / source, len(levels))
            for source in population.sources
        }
        bounds = np.array([size / rows for size in levels[:-1]])
        for batch in _batches(_Reading(population, columns, parts, bounds, rows), engine):
            samples += batch.samples
            for source, counter in counters.items():
                _add(counter, batch.texts[source])
                flags[source].update(batch.flags[source])
            for source in population.scored:
                noise[source].add(batch.scores[source])
            truncated.update(batch.truncated)
            steps.add([batch.scores[source] for source in population.scored])
            sampled.append(batch.sampled)
        found = {source: counter.result() for source, counter in counters.items()}
    table = pa.concat_tables(sampled, promote_options="permissive").sort_by("draw")
    draft.write_table(f"{SAMPLE}.parquet", table)
    for source, measures in found.items():
        measures["flags"] = dict(sorted(flags[source].items()))
        measures["noise"] = noise[source].result() if source in noise else None
        measures["truncated"] = truncated[source] if source in noise else None
    return {
        "samples": samples,
        "sampled": len(table),
        "sources": found,
        "agreement": agreement(noise),
        "steps": steps.result(),
    }


def _add(counter: Counted, texts: Split | SketchedDiversity) -> None:
    if isinstance(texts, Split):
        counter.add(texts)
    else:
        assert isinstance(counter, SketchedDiversity)
        counter.merge(texts)


@dataclass(frozen=True)
class _Reading:
    """Reads batches of shards and computes the counts that need only one batch."""

    population: Population
    columns: Mapping[str, Column]
    parts: Parts
    bounds: np.ndarray
    rows: int

    def __call__(self, shards: Sequence[str]) -> Batch:
        store, settings = self.population.store, self.population.settings
        scored = self.population.scored
        tables = []
        for shard in shards:
            table = read_samples(store, shard, self.columns, self.parts)
            tables.append(table.append_column("shard", pa.repeat(pa.scalar(shard), len(table))))
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        table = scores_of_texts(table, scored)
        draws = self._draws(table)
        of_row = np.searchsorted(self.bounds, draws.to_numpy(), side="right").astype(np.uint8)
        texts: dict[str, Split | SketchedDiversity] = {}
        for source in self.population.sources:
            texts[source] = words = split_batch(one_array(table[f"{source}_text"]), of_row)
            if settings.sketch:
                texts[source] = counted = SketchedDiversity(len(self.bounds) + 1)
                counted.add(words)
        is_sampled = pc.less(draws, settings.sample / self.rows)
        own = [source for source in self.population.sources if source != "raw"]
        flags = {source: _flags(table[f"{source}_flags"]) for source in own}
        return Batch(
            len(table),
            table.append_column("draw", draws).filter(is_sampled),
            {source: table[f"{source}_score"] for source in scored},
            texts,
            {"raw": {}} | flags,
            {source: pc.sum(table[f"{source}_truncated"]).as_py() or 0 for source in scored},
        )

    def _draws(self, table: pa.Table) -> pa.ChunkedArray:
        draw = DRAW.format(name="draw", seed=self.population.settings.seed)
        with _connection().cursor() as cursor:
            cursor.register("batch", table.select(["uid"]))
            return cursor.sql(f"select {draw}::FLOAT as draw from batch").to_arrow_table()["draw"]


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return locked_connection()


def _batches(reading: _Reading, engine: EngineSettings) -> Iterator[Batch]:
    """Yield batches in pool order."""
    groups = shard_batches(reading.parts.rows, ROWS_AT_ONCE)
    with progress("measure", "row", reading.rows) as bar, mapper(engine) as maps:
        for _, batch in maps(reading, groups):
            yield batch
            bar.update(batch.samples)


def _flags(column: pa.ChunkedArray) -> dict[str, int]:
    if column.null_count == len(column):
        return {}
    found = pc.value_counts(pc.list_flatten(column)).to_pylist()
    return {one["values"]: one["counts"] for one in found}
