"""Time the real stages on a few samples of a pool, in a scratch directory."""

import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from capmix.engine.stage import Stage, in_order, run_one
from capmix.errors import UserError
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.layout import FIELDS, SAMPLES
from capmix.storage.store import Store

WARM = "warm-up"


@dataclass(frozen=True)
class TimedStage:
    """One timed stage: images/s of one worker, and bytes read and written per image."""

    name: str
    rate: float
    read: float
    written: float


@dataclass(frozen=True)
class Timed:
    """Timed stages, the number of images timed, and the pool's bytes per image (`of_image`)."""

    stages: list[TimedStage]
    images: int
    of_image: float


@dataclass(frozen=True)
class _FirstSamples(Pool):
    """A pool of one shard cut off after `limit` samples, and the same shard again for warm-up."""

    limit: int = 0
    warm_up: int = 0

    def read(
        self, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        limit = self.warm_up if shard.name == WARM else self.limit
        return islice(super().read(shard, keys), limit)


def time_stages(
    pool: Pool,
    shard: Shard,
    stages_of: Callable[[Pool, Store], Sequence[Stage]],
    samples: int,
    warm_up: int,
) -> Timed:
    """Time the stages of `stages_of(pool, store)` on the first `samples` samples of a shard.

    The stages first run on `warm_up` samples that are not timed. Raises UserError if no sample of
    the shard can be read.
    """
    in_shard = sum(isinstance(sample, Sample) for sample in pool.read(shard))
    if not in_shard:
        raise UserError(f"pool {pool.location}: no sample in shard {shard.name} can be read")
    files = {shard.name: pool.files[shard.name], WARM: pool.files[shard.name]}
    known = pool.location, [shard], pool.places, files, pool.sidecars, pool.follow_links
    limit, of_image = min(samples, in_shard), shard.bytes / in_shard
    part = _FirstSamples(*known, pool.version, limit=limit, warm_up=warm_up)
    with tempfile.TemporaryDirectory(prefix="capmix-plan-") as scratch:
        store = Store(scratch)
        stages = stages_of(part, store)
        order = in_order(stages, range(len(stages)))
        for number in order:
            run_one(stages[number], Shard(WARM, ""), store, lambda _: None)
        timed = {number: _time(stages[number], shard, store, limit, of_image) for number in order}
    return Timed([timed[number] for number in range(len(stages))], limit, of_image)


def _time(stage: Stage, shard: Shard, store: Store, images: int, of_image: float) -> TimedStage:
    """Run and time one stage, which may write several rows per image."""
    outcome = run_one(stage, shard, store, lambda _: None)
    marker = store.read_marker(stage.part(shard))
    assert marker is not None
    read = sum(_bytes(store, f"{folder}/{shard.name}") for folder in stage.reads) / images
    if "pool" in marker.inputs and not stage.rides_on:
        read += of_image
    rate = images / max(outcome.seconds, 1e-9)
    written = _bytes(store, stage.part(shard))
    if stage.folder == SAMPLES:  # the index stage also writes fields
        written += _bytes(store, f"{FIELDS}/{shard.name}")
    return TimedStage(stage.name, rate, read, written / images)


def _bytes(store: Store, part: str) -> int:
    """Return the size of a part's files and marker."""
    marker = store.read_marker(part)
    return 0 if marker is None else marker.bytes + len(store.read_marker_bytes(part))
