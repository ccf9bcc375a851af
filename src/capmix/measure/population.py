"""One pass over all texts and scores of a pool: diversity, noise, agreement, and a fair sample.

Writes `measures/population.json` and `measures/sample.parquet`: of the samples with the lowest
draws uid, shard, key, draw, size, and of each source its text, flags and score.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.engine.messages import progress
from capmix.engine.prefetch import prefetched
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
SMALLEST_LEVEL = 300  # texts; below that a count of different trigrams says nothing


@dataclass(frozen=True)
class Batch:
    """Some shards: their samples, and the words of each source's texts."""

    rows: pa.Table
    splits: dict[str, Split]


@dataclass(frozen=True)
class Population:
    """What to read: `sources` have texts, `scored` of them also scores by `scorer`."""

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


def measure_population(population: Population) -> dict[str, Any]:
    """`sources`: the measures of each; `agreement` of each pair; `steps` (see StepCounts);
    `digests` of the folders that were read."""
    columns = population.columns()
    store = population.store
    parts = check_parts(store, population.pool, folders_of(columns.values()))
    settings = population.settings
    config = {
        "scorer": population.scorer,
        "sources": list(population.sources),
        "scored": list(population.scored),
        "columns": {name: asdict(column) for name, column in sorted(columns.items())},
    } | settings.model_dump(include={"sketch", "sample", "seed"})

    def make(draft: Draft) -> Marker:
        found = _measure(population, columns, parts, draft)
        refuse_rewritten(store, parts)
        rows = sum(parts.rows.values())
        counts = Counts(ok=found["samples"])
        counts.dropped.update({"no sample": rows - found["samples"]})
        return Marker(parts.digests, config, rows, counts, found)

    marker, _ = once(store, PART, parts.digests, config, make, DEFAULTS, [f"{SAMPLE}.parquet"])
    return marker.extra | {"digests": marker.inputs}


def read_sample(store: Store) -> pa.Table:
    """The samples with the lowest draws, lowest first."""
    return store.read_table(f"{SAMPLE}.parquet", part=PART)


def scores_of_texts(table: pa.Table, scored: Sequence[str]) -> pa.Table:
    """No score where there is no text, as imported scores can have: no recipe takes such a row."""
    for source in scored:
        place = table.schema.get_field_index(f"{source}_score")
        has_text = pc.is_valid(table[f"{source}_text"])
        if not pc.all(has_text).as_py():
            scores = pc.if_else(has_text, table.column(place), pa.scalar(None, pa.float32()))
            table = table.set_column(place, f"{source}_score", scores)
    return table


def text_digests(digests: Mapping[str, str], sources: Sequence[str]) -> dict[str, str]:
    """Of the folders that hold the texts of these sources."""
    return {texts_folder(source): digests[texts_folder(source)] for source in sources}


def levels_of(samples: int) -> list[int]:
    """Sizes of nested samples, three to ten times as large each as the one before, then all."""
    sizes, size = [], SMALLEST_LEVEL
    while size < samples:
        sizes.append(size)
        size = size * 10 // 3 if str(size).startswith("3") else size * 3
    return [*sizes, samples]


def _measure(
    population: Population, columns: Mapping[str, Column], parts: Parts, draft: Draft
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
        counters = {
            source: SketchedDiversity(len(levels))
            if settings.sketch
            else Diversity(Path(scratch) / source, len(levels))
            for source in population.sources
        }
        for batch in _batches(population, columns, parts, levels):
            samples += len(batch.rows)
            for source, counter in counters.items():
                counter.add(batch.splits[source])
                if source != "raw":
                    flags[source].update(_flags(batch.rows[f"{source}_flags"]))
            for source in population.scored:
                noise[source].add(batch.rows[f"{source}_score"])
                truncated[source] += pc.sum(batch.rows[f"{source}_truncated"]).as_py() or 0
            steps.add([batch.rows[f"{source}_score"] for source in population.scored])
            is_sampled = pc.less(batch.rows["draw"], settings.sample / rows)
            sampled.append(batch.rows.filter(is_sampled))
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


def _batches(
    population: Population, columns: Mapping[str, Column], parts: Parts, levels: Sequence[int]
) -> Iterator[Batch]:
    """Batches in pool order; two are read and split ahead, in threads."""
    connection = locked_connection()
    draw = DRAW.format(name="draw", seed=population.settings.seed)
    rows = sum(parts.rows.values())
    bounds = np.array([size / rows for size in levels[:-1]])

    def read(shards: Sequence[str]) -> Batch:
        tables = []
        for shard in shards:
            table = read_samples(population.store, shard, columns, parts)
            tables.append(table.append_column("shard", pa.repeat(pa.scalar(shard), len(table))))
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        table = scores_of_texts(table, population.scored)
        with connection.cursor() as cursor:
            cursor.register("batch", table.select(["uid"]))
            draws = cursor.sql(f"select {draw}::FLOAT as draw from batch").to_arrow_table()["draw"]
        of_row = np.searchsorted(bounds, draws.to_numpy(), side="right").astype(np.uint8)
        splits = {
            source: split_batch(one_array(table[f"{source}_text"]), of_row)
            for source in population.sources
        }
        return Batch(table.append_column("draw", draws), splits)

    groups = shard_batches(parts.rows, ROWS_AT_ONCE)
    with progress("measure", "row", rows) as bar:
        for _, finished in prefetched(groups, read, workers=2, ahead=3):
            batch = finished.result()
            yield batch
            bar.update(len(batch.rows))


def _flags(column: pa.ChunkedArray) -> dict[str, int]:
    if column.null_count == len(column):
        return {}
    found = pc.value_counts(pc.list_flatten(column)).to_pylist()
    return {one["values"]: one["counts"] for one in found}
