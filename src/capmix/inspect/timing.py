"""Time the real stages on some samples of a pool, in a scratch directory."""

import tempfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from capmix.engine.stage import Stage, run_one
from capmix.errors import UserError
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.store import Store

WARM = "warm-up"


@dataclass(frozen=True)
class TimedStage:
    """One stage as it was timed: images/s of one worker, and bytes read and written an image."""

    name: str
    rate: float
    read: float
    written: float


@dataclass(frozen=True)
class Timed:
    """Stages that were timed on so many images; and the bytes that one takes in the pool."""

    stages: list[TimedStage]
    images: int
    of_image: float


@dataclass(frozen=True)
class _FirstSamples(Pool):
    """A pool of one shard that ends after so many samples; and the same as a shard to warm up."""

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
    """Time the stages that `stages_of` gives for a pool and a store, on the first `samples` of a
    shard, after `warm_up` more that are not timed. Raises UserError where it holds none."""
    in_shard = sum(isinstance(sample, Sample) for sample in pool.read(shard))
    if not in_shard:
        raise UserError(f"pool {pool.location}: no sample in shard {shard.name} can be read")
    files = {shard.name: pool.files[shard.name], WARM: pool.files[shard.name]}
    known = pool.location, [shard], pool.fs, pool.root, files, pool.sidecars
    limit, of_image = min(samples, in_shard), shard.bytes / in_shard
    links = pool.follow_links
    part = _FirstSamples(*known, follow_links=links, limit=limit, warm_up=warm_up)
    with tempfile.TemporaryDirectory(prefix="capmix-plan-") as scratch:
        store = Store(scratch)
        stages = stages_of(part, store)
        for stage in stages:
            run_one(stage, Shard(WARM, ""), store, lambda _: None)
        timed = [_time(stage, shard, store, limit, of_image) for stage in stages]
    return Timed(timed, limit, of_image)


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
