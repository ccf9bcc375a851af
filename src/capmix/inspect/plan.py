"""Estimate the hours, bytes and cost of captioning and scoring a pool by timing a part of it.

Samples of the first shard run through the real stages in a scratch directory. The rest is
arithmetic (docs/scale.md):

    worker-hours = images / (images per second of a stage) / 3600, summed over the stages
    price = worker-hours x price per worker-hour
"""

from collections.abc import Sequence
from dataclasses import dataclass

from capmix.caption.captioners import caption_stages
from capmix.caption.settings import CaptionSettings
from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.inspect.timing import TimedStage, time_stages
from capmix.models.known import CaptionModel, ScoreModel, chosen_model
from capmix.models.registry import CAPTIONERS, SCORERS, check_backend, find_backend
from capmix.models.shared_read import with_index
from capmix.pool import ImagePool, Pool, open_pool
from capmix.pool.settings import PoolSettings
from capmix.score.scorers import score_stages
from capmix.score.settings import ScoreSettings
from capmix.settings.base import option
from capmix.settings.counted import counted
from capmix.settings.tables import size_text, table_lines
from capmix.storage.store import Store

SOURCE = "planned"
WARM_UP = 8  # untimed images, unless a backend requires more (`warm_up`)


class PlanSettings(PoolSettings):
    """Settings of the plan: models, number of images and timed samples, price."""

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
    workers: int = option(1, "Number of GPUs or hosts that share the work.", ge=1)
    images: int | None = option(
        None, "Number of images to plan for (default: the pool's number of images).", ge=1
    )
    price: float = option(0.0, "Price per worker-hour, in any currency.", ge=0)

    @property
    def captions(self) -> CaptionSettings:
        """Settings of the captioner."""
        return CaptionSettings(
            model=self.model, captions_per_image=self.captions_per_image, device=self.device
        )

    @property
    def scores(self) -> ScoreSettings:
        """Settings of the scorer."""
        return ScoreSettings(model=self.scorer, device=self.device)


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of a pool: `images` times the cost of one image in each step.

    `is_counted` is false if the number of images is estimated from the pool's size in bytes.
    """

    images: int
    is_counted: bool
    timed: int
    shards: int
    steps: list[TimedStage]
    settings: PlanSettings

    @property
    def hours(self) -> float:
        """Total worker-hours of all steps."""
        return sum(self.images / step.rate for step in self.steps) / 3600

    def lines(self) -> list[str]:
        """Return a human-readable table."""
        workers, price = self.settings.workers, self.settings.price
        known = "" if self.is_counted else ", estimated from bytes"
        shards = counted(self.shards, "shard")
        about = f"{counted(self.images, 'image')} in {shards}{known}"
        rows = []
        for step in self.steps:
            hours = self.images / step.rate / 3600
            sizes = size_text(step.read * self.images), size_text(step.written * self.images)
            rows.append([step.name, f"{step.rate:,.1f}", f"{hours:,.1f}", *sizes])
        read = sum(step.read for step in self.steps) * self.images
        written = sum(step.written for step in self.steps) * self.images
        total = f"{self.hours:,.1f}", size_text(read), size_text(written)
        rows.append(["total, on one worker", "", *total])
        table = table_lines(["stage", "images/s", "hours", "read", "written"], rows)
        found = [f"{about}; timed on {counted(self.timed, 'image')}", *table]
        if workers > 1:
            found.append(f"on {workers:,} workers: {self.hours / workers:,.1f} hours")
        if price:
            cost = f"{self.hours * price:,.2f}"
            found.append(f"price: {self.hours:,.1f} worker-hours x {price:g} = {cost}")
        return found


def plan(pool: str | Sequence[str], settings: PlanSettings) -> CostEstimate:
    """Estimate costs by timing indexing, captioning, and scoring of raw texts and captions.

    Raises UserError if the pool has no images or its first shard has no readable sample.
    """
    opened = open_pool(pool, bool(settings.follow_links))
    if not opened.has_images:
        raise UserError(f"plan: pool {opened.location} has metadata but no images")
    settings = _with_models(settings, opened.location)
    used = (CAPTIONERS, settings.model), (SCORERS, settings.scorer)
    warm_up = max(getattr(find_backend(*one), "warm_up", WARM_UP) for one in used)

    def reading(part: ImagePool, store: Store) -> list[Stage]:
        stages = caption_stages(part, store, SOURCE, settings.captions)
        names = [stage.name for stage in stages]
        scoring = score_stages(part, store, ["raw", SOURCE], settings.scores)
        return stages + [stage for stage in scoring if stage.name not in names]

    def stages_of(part: Pool, store: Store) -> list[Stage]:
        return with_index(part, store, lambda shared: reading(shared, store))

    timed = time_stages(opened, opened.shards[0], stages_of, settings.samples, warm_up)
    images = settings.images or round(sum(one.bytes for one in opened.shards) / timed.of_image)
    is_counted = settings.images is not None or len(opened.shards) == 1
    shards = len(opened.shards)
    return CostEstimate(images, is_counted, timed.images, shards, timed.stages, settings)


def _with_models(settings: PlanSettings, location: str) -> PlanSettings:
    """Fill in the models. Raises UserError if one is not specified or not available."""
    captioner = chosen_model(CAPTIONERS, settings.model, location, "plan")
    scorer = chosen_model(SCORERS, settings.scorer, location, "plan", "--scorer")
    named = settings.model_copy(update={"model": captioner, "scorer": scorer})
    check_backend(CAPTIONERS, captioner, named.captions)
    check_backend(SCORERS, scorer, named.scores)
    return named
