"""Run stages over a pool's shards: an engine makes what is missing, with progress.

An engine (`local.py`, `ray.py`) gives a plan, and a reply for each task. All the rest is here: the
bar, the counts, what is tried again, and when a run ends because too much fails.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from capmix.engine.budget import (
    check_failures,
    examples,
    failed_line,
    is_hopeless,
    is_unread,
    reasons,
    unread_rows,
)
from capmix.engine.messages import progress
from capmix.engine.others import announced, forget_dead, shuffled
from capmix.engine.settings import MAX_FAILURES, EngineSettings
from capmix.engine.stage import OnCount, PartOutcome
from capmix.engine.worker import FAILED, STOPPED, Job, Reply, ShardTask, WorkPlan
from capmix.errors import UserError
from capmix.storage.filesystem import without_secrets
from capmix.storage.layout import part_name
from capmix.storage.marker import Counts

log = logging.getLogger(__name__)

ATTEMPTS = 3  # at a shard whose worker dies, or whose part cannot be made for another reason


class Engine(Protocol):
    """Where the work is done, by `workers` at once."""

    workers: int

    def plan(self) -> WorkPlan:
        """What is to be done. Raises UserError."""
        ...

    def run(self, tasks: Sequence[ShardTask], on_count: OnCount) -> Iterator[Reply]:
        """A reply for each task, as they come. `on_count` is told the rows, here or before."""
        ...

    def close(self) -> None:
        """Stop the workers at once."""
        ...


def run_job(
    job: Job,
    max_failures: float = MAX_FAILURES,
    settings: EngineSettings = EngineSettings(),
    rows: int | None = None,
) -> list[Counts]:
    """Make every missing part of the job's stages; the counts of each stage over all its parts.

    Progress (rows/s, time left, ok / dropped / failed) goes to standard error. Raises UserError
    when more than `max_failures` (a fraction) of the rows failed, as early as is certain where the
    number of `rows` of the pool is known, and where a shard could not be processed. What was made
    stays.
    """
    with closing(_engine(job, settings)) as engine:
        plan = engine.plan()
        workers = min(engine.workers, max(1, len(plan.tasks)))
        run = _Run(job, plan, workers, max_failures, rows)
        if run.plan.tasks:
            with announced(job.store) as others:
                run.make(engine, shuffled(run.plan.tasks) if others else run.plan.tasks)
        else:
            forget_dead(job.store)
    try:
        found = run.counts()
    except UserError as error:
        raise UserError(f"{error} {run.lost_shards()}".rstrip()) from error
    if run.lost:
        raise UserError(run.lost_shards())
    return found


def _engine(job: Job, settings: EngineSettings) -> Engine:
    if settings.name == "ray":
        from capmix.engine.ray import Cluster

        return Cluster(job, settings)
    from capmix.engine.local import local_engine

    return local_engine(job, settings)


@dataclass
class _Run:
    """A job under way, or done: `made` is what this run has made of each stage."""

    job: Job
    plan: WorkPlan
    workers: int
    max_failures: float
    rows: int | None
    made: dict[int, PartOutcome] = field(default_factory=dict)
    lost: list[Reply] = field(default_factory=list)
    seconds: float = 0.0
    _shown: Counts = field(default_factory=Counts)

    def make(self, engine: Engine, tasks: Sequence[ShardTask]) -> None:
        """Raises UserError where a worker says so, or too much has failed."""
        started = time.monotonic()
        with self._bar() as bar:

            def on_count(change: Counts) -> None:
                self._shown.add(change)
                rate = self._shown.total / max(time.monotonic() - started, 1e-6)
                bar.set_postfix_str(f"{rate:,.0f} rows/s, {summary(self._shown)}", refresh=False)
                bar.update(0)

            for attempt in range(ATTEMPTS):
                self.lost = []
                for reply in engine.run(tasks, on_count):
                    self._take(reply, attempt, bar)
                tasks = [reply.task for reply in self.lost if reply.task is not None]
                if not tasks:
                    break
        self.seconds = time.monotonic() - started

    def _bar(self) -> Any:
        todo = sum(len(task.stages) for task in self.plan.tasks)
        total = len(self.plan.names) * len(self.job.shards)
        about = self.plan.names[self.plan.tasks[-1].stages[-1]]
        return progress(about, "part", total, done=total - todo)

    def _take(self, reply: Reply, attempt: int, bar: Any) -> None:
        if reply.state == STOPPED or reply.task is None:
            raise UserError(reply.message)
        for number, outcome in reply.outcomes.items():
            self.made.setdefault(number, PartOutcome()).add(outcome)
        if reply.state == FAILED:
            self.lost.append(reply)
            following = "tried again later" if attempt + 1 < ATTEMPTS else "given up"
            told = f"shard {reply.task.shard.name}: {reply.message}; {following}"
            if reply.details and attempt + 1 == ATTEMPTS:
                told += f"\n{reply.details}"
            log.warning("%s", without_secrets(told))
            return
        bar.update(len(reply.task.stages))
        for number in reply.outcomes:
            counts = self.made[number].counts
            rows = self.rows if self.plan.of_samples[number] else None
            if not self.job.retry and is_hopeless(counts, self.max_failures, rows):
                with self.job.store.listed([self.plan.folders[number]]):
                    found = self._examples(number)
                name = f"{self.plan.names[number]} stopped early"
                check_failures(name, counts, self.max_failures, found, rows)

    def counts(self) -> list[Counts]:
        """Of each stage over all its parts, told on standard error. Raises UserError where they are
        over the budget."""
        found: list[Counts] = []
        store = self.job.store
        for number, (name, folder) in enumerate(
            zip(self.plan.names, self.plan.folders, strict=True)
        ):
            counts, unread = Counts(), 0
            with store.listed([folder]):
                for shard in self.job.shards:
                    marker = store.read_marker(part_name(folder, shard.name))
                    if marker is not None:
                        counts.add(marker.counts)
                        unread += is_unread(marker.counts)
                lines = self._examples(number) if counts.failed else []
            log.info("%s: %s", name, self._rate(number, counts))
            if counts.failed:
                rows = unread_rows(counts, unread, len(self.job.shards))
                check_failures(name, counts, self.max_failures, lines, unread=rows)
                if not found or found[-1].failed != counts.failed:  # else they are the same rows
                    log.warning("%s: %s", name, failed_line(counts, lines))
            found.append(counts)
        self._tell_busy()
        return found

    def _examples(self, number: int) -> list[str]:
        return examples(self.job.store, self.plan.folders[number], self.job.shards)

    def _rate(self, number: int, counts: Counts) -> str:
        if number not in self.made:
            return f"done before, {summary(counts)}"
        seconds = max(self.made[number].seconds / self.workers, 1e-6)
        rate = self.made[number].counts.total / seconds
        return f"{summary(counts)}; {rate:,.0f} rows/s, {seconds:.1f} s"

    def _tell_busy(self) -> None:
        images = sum(outcome.busy.images for outcome in self.made.values())
        busy = sum(outcome.busy.seconds for outcome in self.made.values())
        if images and self.seconds:
            rate, share = images / self.seconds, busy / self.seconds / self.workers
            several = f", {self.workers} workers" if self.workers > 1 else ""
            name = self.plan.names[-1]
            log.info("%s", f"{name}: {rate:,.1f} images/s, model busy {share:.0%}{several}")

    def lost_shards(self) -> str:
        """What to say of the shards that no attempt could process; "" where there are none."""
        if not self.lost:
            return ""
        names = [reply.task.shard.name for reply in self.lost if reply.task is not None]
        shown = "; ".join(
            f"{name}: {reply.message}" for name, reply in zip(names[:3], self.lost, strict=False)
        )
        return (
            f"{len(names)} of {len(self.job.shards)} shards could not be processed in {ATTEMPTS} "
            f"attempts ({shown}). All others are done; the same command tries these again."
        )


def summary(counts: Counts) -> str:
    """Counts for people."""
    text = f"{counts.ok:,} ok, {counts.dropped.total():,} dropped, {counts.failed.total():,} failed"
    why = reasons(counts.dropped + counts.failed)
    return f"{text} ({why})" if why else text
