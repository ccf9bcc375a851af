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

from pydantic import BaseModel, ConfigDict, Field

from capmix.caption.captioners import caption_stages
from capmix.caption.settings import CaptionSettings
from capmix.engine.stage import Stage, run_one
from capmix.errors import UserError
from capmix.models.index import index_stages
from capmix.pool import BadSample, Pool, Sample, Shard, open_pool
from capmix.score.scorers import score_stages
from capmix.score.settings import ScoreSettings
from capmix.storage.store import Store
from capmix.work import require_mini

SOURCE = "planned"
WARM = "warm-up"
WARM_UP = 8  # images before the clock starts: a model's first batch loads and compiles


class PlanSettings(BaseModel):
    """`samples` are timed; `workers` share the work; `price` is of one of them for an hour, in any
    currency; `images` stands for the pool's number of images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(default=512, ge=1)
    workers: int = Field(default=1, ge=1)
    images: int | None = Field(default=None, ge=1)
    price: float = Field(default=0.0, ge=0)


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
        head = f"{'stage':<28}{'images/s':>10}{'hours':>12}{'read':>12}{'written':>12}"
        shards = f"{self.shards:,} shard{'s' if self.shards > 1 else ''}"
        about = f"{self.images:,} images in {shards}{known}"
        found = [f"{about}; timed on {self.timed}", head]
        for step in self.steps:
            hours = self.images / step.rate / 3600
            sizes = f"{_size(step.read * self.images):>12}{_size(step.written * self.images):>12}"
            found.append(f"{step.name:<28}{step.rate:>10,.1f}{hours:>12,.1f}{sizes}")
        read = sum(step.read for step in self.steps) * self.images
        written = sum(step.written for step in self.steps) * self.images
        total = f"{self.hours:>12,.1f}{_size(read):>12}{_size(written):>12}"
        found.append(f"{'together, on one worker':<38}{total}")
        if workers > 1:
            found.append(f"on {workers:,} workers: {self.hours / workers:,.1f} hours")
        if price:
            total = f"{self.hours * price:,.2f}"
            found.append(f"price: {self.hours:,.1f} worker-hours x {price:g} = {total}")
        return found


@dataclass(frozen=True)
class _FirstSamples(Pool):
    """A pool of one shard that ends after so many samples; and the same as a shard to warm up."""

    limit: int = 0

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        limit = WARM_UP if shard.name == WARM else self.limit
        return islice(super().read(shard, keys), limit)


def plan(
    pool: str, captions: CaptionSettings, scores: ScoreSettings, settings: PlanSettings
) -> CostEstimate:
    """Time the listing, captioning, and scoring of raw texts and captions.

    Raises UserError for a pool without images, or whose first shard holds none that is ok.
    """
    if "mini" in (captions.model, scores.model):
        require_mini()
    opened = open_pool(pool)
    if not opened.has_images:
        raise UserError(f"plan: pool {pool} holds metadata without images")
    shard = opened.shards[0]
    in_shard = sum(isinstance(sample, Sample) for sample in opened.read(shard))
    if not in_shard:
        raise UserError(f"plan: no sample in shard {shard.name}, the first of {pool}, can be read")
    files = {shard.name: opened.files[shard.name], WARM: opened.files[shard.name]}
    known = opened.location, [shard], opened.fs, opened.root, files, opened.sidecars
    part = _FirstSamples(*known, limit=min(settings.samples, in_shard))
    of_image = shard.bytes / in_shard
    with tempfile.TemporaryDirectory(prefix="capmix-plan-") as scratch:
        store = Store(scratch)
        stages = index_stages(part) + caption_stages(part, store, SOURCE, captions)
        names = [stage.name for stage in stages]
        scoring = score_stages(part, store, ["raw", SOURCE], scores)
        stages += [stage for stage in scoring if stage.name not in names]
        for stage in stages:
            run_one(stage, Shard(WARM, ""), store, lambda _: None)
        steps = [_time(stage, shard, store, part.limit, of_image) for stage in stages]
    images = settings.images or round(sum(one.bytes for one in opened.shards) / of_image)
    is_counted = settings.images is not None or len(opened.shards) == 1
    return CostEstimate(images, is_counted, part.limit, len(opened.shards), steps, settings)


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
    return 0 if marker is None else sum(marker.files.values()) + store.size(f"{part}.json")


def _size(count: float) -> str:
    """Bytes for people, in powers of 1,000, as storage is priced."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"
