"""Forecast what captioning or scoring would do (`--dry-run`).

The model is loaded, because its settings determine which parts are up to date, and a few images run
through the real stages in a scratch directory. Nothing is written to the work directory except the
index of samples, if samples are selected or parts exist.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from capmix.caption.captioners import caption_stages, make_captioner
from capmix.caption.carried import tried
from capmix.caption.settings import CaptionSettings
from capmix.engine.progress import duration
from capmix.engine.settings import EngineSettings, RunSettings
from capmix.engine.stage import Stage
from capmix.engine.worker import Job, ShardTask, Worker
from capmix.inspect.timing import Timed, time_stages
from capmix.models.index import index_stages, pool_inputs
from capmix.pool import Pool, Shard
from capmix.pool.selection import Selection
from capmix.score.scorers import make_scorer, score_stages
from capmix.score.settings import ScoreSettings
from capmix.settings.counted import counted
from capmix.settings.tables import size_text, table_lines
from capmix.storage.layout import RAW, SAMPLES, captions_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

TIMED, WARM_UP = 8, 2  # images; few, because a large model needs seconds per image on a CPU
StagesOf = Callable[[Pool, Store, Selection | None], Sequence[Stage]]


@dataclass(frozen=True)
class StageForecast:
    """One stage: shards and images to process, images to keep, bytes to read and write, and seconds
    summed over all workers."""

    name: str
    shards: int
    images: int
    kept: int
    read: float
    written: float
    seconds: float


@dataclass(frozen=True)
class Forecast:
    """What a command would do; `timed` is the number of images used for timing."""

    stages: list[StageForecast]
    shards: int
    timed: int
    workers: int

    @property
    def seconds(self) -> float:
        """Estimated seconds of all stages, divided among the engine's workers."""
        return sum(one.seconds for one in self.stages) / self.workers

    def lines(self) -> list[str]:
        """Return a human-readable table."""
        rows = [
            [
                one.name,
                f"{one.shards:,} of {self.shards:,}",
                f"{one.images:,}",
                f"{one.kept:,}",
                size_text(one.read),
                size_text(one.written),
                duration(one.seconds / self.workers),
            ]
            for one in self.stages
        ]
        head = ["stage", "shards to do", "images", "kept", "read", "written", "time"]
        how = f"timed on {counted(self.timed, 'image')}" if self.timed else "nothing to do"
        several = f", {self.workers} workers" if self.workers > 1 else ""
        return [
            *table_lines(head, rows),
            f"dry run: {how}{several}; nothing was captioned or scored",
        ]


@dataclass(frozen=True)
class Site:
    """Where the work would be done. `pool` has the required shards of the `whole` pool."""

    pool: Pool
    whole: Pool
    store: Store
    selection: Selection | None
    engine: EngineSettings
    runs: RunSettings


def forecast_captions(site: Site, source: str, settings: CaptionSettings) -> Forecast:
    """Forecast `caption`. Raises UserError in the same cases as captioning."""
    captioner = make_captioner(settings, source)

    def stages(pool: Pool, store: Store, selection: Selection | None) -> list[Stage]:
        return caption_stages(pool, store, source, settings, selection, captioner)

    def scratch(pool: Pool, store: Store) -> list[Stage]:
        return [*index_stages(pool), *stages(pool, store, None)]

    with tried(site.store, site.whole, source):
        return _forecast(site, stages, scratch, protect=True)


def forecast_scores(site: Site, sources: Sequence[str], settings: ScoreSettings) -> Forecast:
    """Forecast `score`. Texts of sources without captions are assumed to be as long as raw texts.

    Raises UserError in the same cases as scoring.
    """
    scorer = make_scorer(settings)

    def stages(pool: Pool, store: Store, selection: Selection | None) -> list[Stage]:
        return score_stages(pool, store, sources, settings, selection, scorer)

    def scratch(pool: Pool, store: Store) -> list[Stage]:
        shard = pool.shards[0].name
        have = [RAW] if RAW in sources else []
        for source in sources:
            folder = captions_folder(source)
            if source != RAW and site.store.read_marker(f"{folder}/{shard}") is not None:
                texts = site.store.read_table(f"{folder}/{shard}.parquet")
                for name in pool.files:  # the timed shard and its warm-up copy
                    _write_part(store, f"{folder}/{name}", texts)
                have.append(source)
        scoring = score_stages(pool, store, have or [RAW], settings, None, scorer)
        return [*index_stages(pool), *scoring]

    return _forecast(site, stages, scratch, protect=False)


def _forecast(
    site: Site,
    stages_of: StagesOf,
    scratch: Callable[[Pool, Store], Sequence[Stage]],
    protect: bool,
) -> Forecast:
    stages = list(stages_of(site.pool, site.store, site.selection))
    protected = site.whole.shards if protect and not site.runs.force else ()
    job = Job(lambda: stages, site.pool.shards, site.store, protected, site.runs.retry_failed)
    tasks = Worker(job).plan().tasks
    timed = Timed([], 0, 0.0)
    if tasks:
        shard = _to_time(site, tasks)
        timed = time_stages(site.pool, shard, scratch, TIMED, WARM_UP)
    found = [
        _of_stage(site, stage, [task.shard for task in tasks if number in task.stages], timed)
        for number, stage in enumerate(stages)
    ]
    workers = site.engine.workers or 1
    return Forecast(found, len(site.pool.shards), timed.images, workers)


def _write_part(store: Store, part: str, table: pa.Table) -> None:
    with store.draft(part) as draft:
        draft.write_table(f"{part}.parquet", table)
        draft.commit(Marker({}, {}, len(table), Counts(len(table))))


def _to_time(site: Site, tasks: Sequence[ShardTask]) -> Shard:
    """Return the first shard that has samples according to the index, or is not indexed yet."""
    for task in tasks:
        marker = site.store.read_marker(f"{SAMPLES}/{task.shard.name}")
        if marker is None or marker.counts.ok:
            return task.shard
    return tasks[0].shard


def _of_stage(site: Site, stage: Stage, shards: Sequence[Shard], timed: Timed) -> StageForecast:
    images = kept = 0
    for shard in shards:
        todo, stays = _images(site, stage, shard, timed.of_image)
        images, kept = images + todo, kept + stays
    if not shards:
        return StageForecast(stage.name, 0, 0, 0, 0.0, 0.0, 0.0)
    of_same_name = (one for one in timed.stages if one.name == stage.name)
    speed = next(of_same_name, timed.stages[-1])
    read, written = speed.read * images, speed.written * images
    return StageForecast(stage.name, len(shards), images, kept, read, written, images / speed.rate)


def _images(site: Site, stage: Stage, shard: Shard, of_image: float) -> tuple[int, int]:
    """Return how many images of a shard a stage would process, and how many it would keep."""
    redo = stage.reuse.redo(shard) if stage.reuse is not None else None
    if redo is not None:
        return len(redo.keys), redo.counts.ok
    marker = site.store.read_marker(f"{SAMPLES}/{shard.name}")
    if marker is None or marker.inputs != pool_inputs(shard):
        return round(shard.bytes / max(of_image, 1.0)), 0
    if site.selection is not None and site.selection.fingerprint(shard.name):
        return int(site.selection.rows(shard.name, marker.rows_in).sum()), 0
    return marker.counts.ok, 0
