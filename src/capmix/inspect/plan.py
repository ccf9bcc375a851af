"""What captioning and scoring a pool will take: hours, bytes and money, from timing a part of it.

Samples of the first shard that can be read go through the real stages in a scratch directory; the
rest is arithmetic (docs/scale.md):

    worker-hours = images / (images per second of a stage) / 3600, summed over the stages
    price = worker-hours x price of a worker for an hour
"""

import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import islice

from capmix.caption.captioners import caption_stages
from capmix.caption.settings import CaptionSettings
from capmix.engine.stage import Stage, run_one
from capmix.errors import UserError
from capmix.models.index import index_stages
from capmix.models.known import CaptionModel, ScoreModel, chosen_model
from capmix.models.registry import CAPTIONERS, SCORERS, check_backend, find_backend
from capmix.pool import BadSample, Pool, Sample, Shard, open_pool
from capmix.pool.settings import PoolSettings
from capmix.score.scorers import score_stages
from capmix.score.settings import ScoreSettings
from capmix.settings.base import option
from capmix.settings.tables import table_lines
from capmix.storage.store import Store

SOURCE = "planned"
WARM = "warm-up"
WARM_UP = 8  # images before the clock starts, where the backends ask for no more (`warm_up`)


class PlanSettings(PoolSettings):
    """What is planned for, and how many samples are timed."""

    model: CaptionModel = option(
        "",
        "Captioner, as in `capmix caption` (default: `mini` for the pool `embedded`).",
        group="Model",
    )
    scorer: ScoreModel = option(
        "", "Scorer, as in `capmix score` (default: `mini` for the pool `embedded`).", group="Model"
    )
    captions_per_image: int = option(1, "Captions per image.", group="Model", ge=1)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, ...", group="Model")
    samples: int = option(512, "Samples to time.", ge=1)
    workers: int = option(1, "GPUs or machines that share the work.", ge=1)
    images: int | None = option(None, "Plan for so many images (default: the pool's).", ge=1)
    price: float = option(0.0, "Price of one worker for an hour, in any currency.", ge=0)

    @property
    def captions(self) -> CaptionSettings:
        """How captions are written."""
        return CaptionSettings(
            model=self.model, captions_per_image=self.captions_per_image, device=self.device
        )

    @property
    def scores(self) -> ScoreSettings:
        """How texts are scored."""
        return ScoreSettings(model=self.scorer, device=self.device)


@dataclass(frozen=True)
class TimedStage:
    """One stage as it was timed: images/s of one worker, and bytes read and written an image."""

    name: str
    rate: float
    read: float
    written: float


@dataclass(frozen=True)
class CostEstimate:
    """What a pool will take: `images` times what each step takes for one.

    `is_counted` is false where the number of images comes from the pool's bytes."""

    images: int
    is_counted: bool
    timed: int
    shards: int
    steps: list[TimedStage]
    settings: PlanSettings

    @property
    def hours(self) -> float:
        """Worker-hours of all steps together."""
        return sum(self.images / step.rate for step in self.steps) / 3600

    def lines(self) -> list[str]:
        """A table for people."""
        workers, price = self.settings.workers, self.settings.price
        known = "" if self.is_counted else ", estimated by bytes"
        shards = f"{self.shards:,} shard{'s' if self.shards > 1 else ''}"
        about = f"{self.images:,} images in {shards}{known}"
        rows = []
        for step in self.steps:
            hours = self.images / step.rate / 3600
            sizes = _size(step.read * self.images), _size(step.written * self.images)
            rows.append([step.name, f"{step.rate:,.1f}", f"{hours:,.1f}", *sizes])
        read = sum(step.read for step in self.steps) * self.images
        written = sum(step.written for step in self.steps) * self.images
        total = f"{self.hours:,.1f}", _size(read), _size(written)
        rows.append(["together, on one worker", "", *total])
        table = table_lines(["stage", "images/s", "hours", "read", "written"], rows)
        found = [f"{about}; timed on {self.timed}", *table]
        if workers > 1:
            found.append(f"on {workers:,} workers: {self.hours / workers:,.1f} hours")
        if price:
            cost = f"{self.hours * price:,.2f}"
            found.append(f"price: {self.hours:,.1f} worker-hours x {price:g} = {cost}")
        return found


@dataclass(frozen=True)
class _FirstSamples(Pool):
    """A pool of one shard that ends after so many samples; and the same as a shard to warm up."""

    limit: int = 0
    warm_up: int = WARM_UP

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        limit = self.warm_up if shard.name == WARM else self.limit
        return islice(super().read(shard, keys), limit)


def plan(pool: str, settings: PlanSettings) -> CostEstimate:
    """Time the listing, captioning, and scoring of raw texts and captions.

    Raises UserError for a pool without images, or whose first shard holds none that is ok.
    """
    opened = open_pool(pool, bool(settings.follow_links))
    if not opened.has_images:
        raise UserError(f"plan: pool {pool} holds metadata without images")
    settings = _with_models(settings, opened.location)
    shard = opened.shards[0]
    in_shard = sum(isinstance(sample, Sample) for sample in opened.read(shard))
    if not in_shard:
        raise UserError(f"plan: no sample in shard {shard.name}, the first of {pool}, can be read")
    files = {shard.name: opened.files[shard.name], WARM: opened.files[shard.name]}
    known = opened.location, [shard], opened.fs, opened.root, files, opened.sidecars
    used = (CAPTIONERS, settings.model), (SCORERS, settings.scorer)
    warm_up = max(getattr(find_backend(*one), "warm_up", WARM_UP) for one in used)
    limit = min(settings.samples, in_shard)
    links = opened.follow_links
    part = _FirstSamples(*known, follow_links=links, limit=limit, warm_up=warm_up)
    of_image = shard.bytes / in_shard
    with tempfile.TemporaryDirectory(prefix="capmix-plan-") as scratch:
        store = Store(scratch)
        stages = index_stages(part) + caption_stages(part, store, SOURCE, settings.captions)
        names = [stage.name for stage in stages]
        scoring = score_stages(part, store, ["raw", SOURCE], settings.scores)
        stages += [stage for stage in scoring if stage.name not in names]
        for stage in stages:
            run_one(stage, Shard(WARM, ""), store, lambda _: None)
        steps = [_time(stage, shard, store, part.limit, of_image) for stage in stages]
    images = settings.images or round(sum(one.bytes for one in opened.shards) / of_image)
    is_counted = settings.images is not None or len(opened.shards) == 1
    return CostEstimate(images, is_counted, part.limit, len(opened.shards), steps, settings)


def _with_models(settings: PlanSettings, location: str) -> PlanSettings:
    """Raises UserError where a model is not named, or cannot be had."""
    captioner = chosen_model(CAPTIONERS, settings.model, location, "plan")
    scorer = chosen_model(SCORERS, settings.scorer, location, "plan", "--scorer")
    named = settings.model_copy(update={"model": captioner, "scorer": scorer})
    check_backend(CAPTIONERS, captioner, named.captions)
    check_backend(SCORERS, scorer, named.scores)
    return named


def _time(stage: Stage, shard: Shard, store: Store, images: int, of_image: float) -> TimedStage:
    """Of a stage that may have several rows an image."""
    outcome = run_one(stage, shard, store, lambda _: None)
    marker = store.read_marker(stage.part(shard))
    assert marker is not None
    read = sum(_bytes(store, f"{folder}/{shard.name}") for folder in stage.reads) / images
    if "pool" in marker.inputs:
        read += of_image
    rate = images / max(outcome.seconds, 1e-9)
    return TimedStage(stage.name, rate, read, _bytes(store, stage.part(shard)) / images)


def _bytes(store: Store, part: str) -> int:
    """Of a part's files and its marker."""
    marker = store.read_marker(part)
    return 0 if marker is None else marker.bytes + len(store.read_marker_bytes(part))


def _size(count: float) -> str:
    """Bytes for people, in powers of 1,000, as storage is priced."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
