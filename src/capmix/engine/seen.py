"""What a worker reports of a part while it makes it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from capmix.engine.busy import Busy
from capmix.engine.stage import PartOutcome, PartWriter, Stage
from capmix.pool import Shard
from capmix.storage.marker import Counts

TOLD_EVERY = 0.5  # seconds


@dataclass(frozen=True)
class Seen:
    """How far the part of one shard has come, `seconds` after it was begun.

    `rows` are those that are counted, or that the model has seen where these are more. `failed` is
    part of them: to fail takes no time of a model. The first of a stage in a process `is_first`:
    its seconds are also those of loading and compiling.
    """

    shard: str
    stage: int
    rows: int = 0
    ok: int = 0
    dropped: int = 0
    failed: int = 0
    seconds: float = 0.0
    is_first: bool = False


OnSeen = Callable[[Seen], None]


class Watch:
    """Reports one part at its begin, at most once in TOLD_EVERY seconds, and at its end."""

    def __init__(self, shard: str, stage: int, on_seen: OnSeen, is_first: bool):
        self._shard, self._stage, self._on_seen, self._is_first = shard, stage, on_seen, is_first
        self._counts = Counts()
        self._busy = _WatchedBusy(self._tell)
        self._started = self._told_at = time.monotonic()
        on_seen(Seen(shard, stage, is_first=is_first))

    def of(self, stage: Stage) -> Stage:
        """The stage, which also notes here what its model sees."""

        def run_shard(shard: Shard, out: PartWriter) -> None:
            out.busy = self._busy
            stage.run_shard(shard, out)

        return replace(stage, run_shard=run_shard)

    def on_count(self, change: Counts) -> None:
        """Rows that were counted since the last call."""
        self._counts.add(change)
        self._tell()

    def finished(self, outcome: PartOutcome) -> PartOutcome:
        """The outcome of the part, as it can be sent to another process."""
        self._tell_now()
        return replace(outcome, busy=Busy(outcome.busy.seconds, outcome.busy.images))

    def _tell(self) -> None:
        if time.monotonic() - self._told_at >= TOLD_EVERY:
            self._tell_now()

    def _tell_now(self) -> None:
        self._told_at = time.monotonic()
        counts = self._counts
        rows = max(counts.total, self._busy.images)
        seconds = self._told_at - self._started
        seen = Seen(self._shard, self._stage, rows, counts.ok, counts.dropped.total(),
                    counts.failed.total(), seconds, self._is_first)  # fmt: skip
        self._is_first = self._is_first and not rows
        self._on_seen(seen)


class _WatchedBusy(Busy):
    def __init__(self, on_images: Callable[[], None]):
        super().__init__()
        self._on_images = on_images

    @contextmanager
    def working(self, images: int) -> Iterator[None]:
        with super().working(images):
            yield
        self._on_images()
