"""Progress and remaining time of a job, from the rows of each stage and the cost per row.

The rate counts only rows that did not fail, between two reports of the same part. The first report
of a stage in each process only starts the clock. Existing parts, unreadable shards, loading,
downloads and compilation therefore do not affect the rate.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from capmix.engine.progress import View
from capmix.engine.seen import Seen
from capmix.engine.stage import PartOutcome
from capmix.engine.worker import Reply

FADING = 120.0  # half-life of a measurement, in seconds of work


@dataclass
class _Cost:
    """Measured seconds and rows, weighted so that older measurements count less."""

    seconds: float = 0.0
    rows: float = 0.0

    def add(self, seconds: float, rows: int) -> None:
        kept = 0.5 ** (seconds / FADING)
        self.seconds, self.rows = self.seconds * kept + seconds, self.rows * kept + rows

    @property
    def of_a_row(self) -> float | None:
        return self.seconds / self.rows if self.rows > 0 and self.seconds > 0 else None


@dataclass
class _Tally:
    """Rows of finished parts."""

    rows: int = 0
    ok: int = 0
    dropped: int = 0
    failed: int = 0

    def add(self, seen: Seen) -> None:
        self.rows += seen.rows
        self.ok += seen.ok
        self.dropped += seen.dropped
        self.failed += seen.failed


@dataclass
class Sized:
    """Rows of some parts, and their weight: their size in bytes if known, otherwise 1 per part."""

    rows: int = 0
    weight: int = 0


class StageProgress:
    """Progress of one stage of a job.

    `sizes` has the number of rows of each shard to process, or None if it is unknown. Unknown
    numbers are estimated from `weights` and from finished parts, of this run or from `before` it.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        sizes: Mapping[str, int | None],
        weights: Mapping[str, int],
        before: Sized,
    ):
        self.name, self.unit, self.before = name, unit, before.rows
        self._left, self._weights = dict(sizes), weights
        self._known = sum(size for size in sizes.values() if size is not None)
        self._unknown = sum(weights[name] for name, size in sizes.items() if size is None)
        self._measured = Sized(before.rows, before.weight)
        self._made = _Tally()
        self._at_work: dict[str, Seen] = {}
        self._costed: dict[str, Seen] = {}
        self._cost, self._first_cost = _Cost(), _Cost()

    def add(self, seen: Seen) -> None:
        """Record a report about a part that is being computed."""
        if seen.shard not in self._left:
            return
        self._at_work[seen.shard] = seen
        before = self._costed.get(seen.shard)
        if before is None or not seen.seconds:
            before = self._costed[seen.shard] = Seen(seen.shard, seen.stage)
        rows = seen.worked - before.worked
        if rows > 0:
            cost = self._first_cost if seen.is_first else self._cost
            cost.add(seen.seconds - before.seconds, rows)
            self._costed[seen.shard] = seen

    def end(self, shard: str, outcome: PartOutcome) -> None:
        """Record that the part of a shard is finished.

        If `outcome` counts no rows, another run has computed the part.
        """
        if shard not in self._left:
            return
        seen = self._at_work.get(shard)
        counts = outcome.counts
        is_first = seen is None or (seen.is_first and not seen.worked)
        last = Seen(shard, 0, counts.total, counts.ok, counts.dropped.total(),
                    counts.failed.total(), outcome.seconds, is_first,
                    outcome.resumed)  # fmt: skip
        self.add(last)
        self.drop(shard)
        size, weight = self._left.pop(shard), self._weights[shard]
        self._made.add(last)
        if size is not None:
            self._known -= size
            self.before += 0 if last.rows else size
            return
        self._unknown -= weight
        self._measured.rows += last.rows
        self._measured.weight += weight

    def drop(self, shard: str) -> None:
        """Record that no worker is at the part of a shard; it may be started again later."""
        self._costed.pop(shard, None)
        self._at_work.pop(shard, None)

    @property
    def done(self) -> int:
        """Rows that are done."""
        now = (min(seen.rows, self._left[seen.shard] or seen.rows) for seen in self._working)
        return self.before + self._made.rows + sum(now)

    @property
    def total(self) -> int | None:
        """Rows that are done or to be processed; None while that cannot be estimated."""
        total = self.before + self._made.rows + self._known
        if not self._unknown:
            return total
        if not self._measured.rows or not self._measured.weight:
            return None
        share = self._unknown / self._measured.weight
        return max(self.done, total + round(share * self._measured.rows))

    @property
    def is_about(self) -> bool:
        """Whether the total is an estimate."""
        return self._unknown > 0

    @property
    def cost(self) -> float | None:
        """Seconds that one worker needs per row; None before the first measurement.

        The first report of a process, which includes loading, is used only if it covers a whole
        part and there is no other measurement.
        """
        steady = self._cost.of_a_row
        if steady is None and self._made.ok + self._made.dropped:
            return self._first_cost.of_a_row
        return steady

    @property
    def tally(self) -> tuple[int, int, int]:
        """Rows of this run that are ok, dropped and failed."""
        made, now = self._made, self._working
        return (
            made.ok + sum(seen.ok for seen in now),
            made.dropped + sum(seen.dropped for seen in now),
            made.failed + sum(seen.failed for seen in now),
        )

    @property
    def rows_at_work(self) -> int:
        """Remaining rows of the parts in progress; parts of unknown size are left out."""
        return sum(max(0, (self._left[s.shard] or s.rows) - s.rows) for s in self._working)

    @property
    def parts_left(self) -> int:
        return len(self._left)

    @property
    def _working(self) -> Sequence[Seen]:
        return list(self._at_work.values())


@dataclass
class JobProgress:
    """Progress of all stages of a job, by number. `active` returns the number of active workers.

    `view` and `views` may be called from another thread than the other methods.
    """

    stages: dict[int, StageProgress]
    active: Callable[[], int]
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _current: int = -1
    _news_at: float = 0.0

    def add(self, seen: Seen) -> None:
        """Record a report of a worker."""
        with self._lock:
            if seen.stage in self.stages:
                self.stages[seen.stage].add(seen)
                self._current, self._news_at = seen.stage, self.clock()

    def end(self, reply: Reply) -> None:
        """Record the end of a task: its finished parts, and parts that may be started again."""
        if reply.task is None:
            return
        shard = reply.task.shard.name
        with self._lock:
            for number in reply.task.stages:
                stage = self.stages[number]
                if number in reply.outcomes:
                    stage.end(shard, reply.outcomes[number])
                else:
                    stage.drop(shard)

    def view(self) -> View:
        """Return the progress of the whole job, under the name of the stage that reported last.

        With several stages, `done` is the elapsed share of the time, expressed in images.
        """
        with self._lock:
            return self._view()

    def views(self) -> list[View]:
        """Return the progress of each stage."""
        with self._lock:
            whole = self._view()
            return [self._view_of(stage, whole) for stage in self.stages.values()]

    def _view(self) -> View:
        stages = list(self.stages.values())
        stage = self.stages.get(self._current, stages[-1])
        tallies = [one.tally for one in stages]
        costs = [one.cost for one in stages if one.cost is not None]
        typical = sum(costs) / len(costs) if costs else 1.0
        totals = [one.total for one in stages]
        known = [total for total in totals if total is not None]
        is_about = any(one.is_about for one in stages) or 0 < len(costs) < len(stages)
        ok, dropped, failed = (max(one[i] for one in tallies) for i in range(3))
        if len(known) < len(stages):
            rate = self._rate(stages, typical) if costs else None
            done = max(one.done for one in stages)
            return View(stage.name, stage.unit, done, None, rate, None, ok, dropped, failed)
        spent = sum((one.cost or typical) * one.done for one in stages)
        whole = sum((one.cost or typical) * total for one, total in zip(stages, known, strict=True))
        total = max(known)
        done = round(total * spent / whole) if whole else total
        rate = eta = None
        if costs:
            rate = self._rate(stages, typical)
            at_work = sum((one.cost or typical) * one.rows_at_work for one in stages)
            # Some stages report a part only at its end: count the time since the last report.
            since = min(self.clock() - self._news_at, at_work / self._workers(stages))
            eta = max(0.0, (whole - spent) / self._workers(stages) - since)
        return View(stage.name, stage.unit, done, total, rate, eta, ok, dropped, failed, is_about)

    def _view_of(self, stage: StageProgress, whole: View) -> View:
        ok, dropped, failed = stage.tally
        return View(
            stage.name, stage.unit, stage.done, stage.total, whole.rate, whole.eta,
            ok, dropped, failed, stage.is_about,
        )  # fmt: skip

    def _rate(self, stages: Sequence[StageProgress], typical: float) -> float:
        return self._workers(stages) / sum(one.cost or typical for one in stages)

    def _workers(self, stages: Sequence[StageProgress]) -> int:
        return max(1, min(self.active(), max(one.parts_left for one in stages)))
