"""Progress reports of a worker about the part that it is computing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from capmix.engine.busy import Busy
from capmix.engine.stage import PartOutcome, PartWriter, Stage
from capmix.pool import Shard
from capmix.storage.marker import Counts

REPORT_INTERVAL = 0.5  # seconds


@dataclass(frozen=True)
class Seen:
    """Progress of the part of one shard, `seconds` after its start.

    `rows` is the number of counted rows, or of rows that the model has processed if that is
    larger; it includes `failed`, and `resumed`, the rows of an earlier run that have not failed.
    `is_first` is set in the reports of a stage up to and including the first one in this process
    after the model has run: their seconds include loading and compilation.
    """

    shard: str
    stage: int
    rows: int = 0
    ok: int = 0
    dropped: int = 0
    failed: int = 0
    seconds: float = 0.0
    is_first: bool = False
    resumed: int = 0

    @property
    def worked(self) -> int:
        """Rows on which the model spent time."""
        return max(0, self.rows - self.failed - self.resumed)


OnSeen = Callable[[Seen], None]


class Watch:
    """Reports one part at its start, at most every REPORT_INTERVAL seconds, and at its end."""

    def __init__(self, shard: str, stage: int, on_seen: OnSeen, is_first: bool):
        self._shard, self._stage, self._on_seen, self._is_first = shard, stage, on_seen, is_first
        self._counts = Counts()
        self._out: PartWriter | None = None
        self._busy = _WatchedBusy(self._report_if_due)
        self._started = self._reported_at = time.monotonic()
        on_seen(Seen(shard, stage, is_first=is_first))

    def of(self, stage: Stage) -> Stage:
        """Return the stage, changed so that it also reports here what its model processes."""

        def run_shard(shard: Shard, out: PartWriter) -> None:
            out.busy, self._out = self._busy, out
            stage.run_shard(shard, out)

        return replace(stage, run_shard=run_shard)

    def on_count(self, change: Counts) -> None:
        """Add the rows that were counted since the last call."""
        self._counts.add(change)
        self._report_if_due()

    def finished(self, outcome: PartOutcome) -> PartOutcome:
        """Send the last report. Return the outcome in a form that can be pickled."""
        self._report()
        return replace(outcome, busy=Busy(outcome.busy.seconds, outcome.busy.images))

    def _report_if_due(self) -> None:
        if time.monotonic() - self._reported_at >= REPORT_INTERVAL:
            self._report()

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        counts = self._counts
        rows = max(counts.total, self._busy.images)
        seconds = self._reported_at - self._started
        resumed = 0 if self._out is None else self._out.resumed
        seen = Seen(self._shard, self._stage, rows, counts.ok, counts.dropped.total(),
                    counts.failed.total(), seconds, self._is_first, resumed)  # fmt: skip
        self._is_first = self._is_first and not seen.worked
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
