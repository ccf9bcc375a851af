"""Run stages over the shards of a pool: compute the missing parts, with progress.

An engine (`local.py`, `ray.py`) returns a plan and yields a reply for each task. This module does
the rest: progress, counts, retries, and stopping a run in which too many rows fail.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from capmix.engine.budget import (
    check_failures,
    examples,
    failed_line,
    is_hopeless,
    is_unread,
    reasons,
    unread_rows,
)
from capmix.engine.estimate import JobProgress, Sized, StageProgress
from capmix.engine.others import announced, forget_dead, is_alone, shuffled
from capmix.engine.partial import remove_finished
from capmix.engine.progress import Display, View, duration, rate_text
from capmix.engine.seen import OnSeen
from capmix.engine.settings import MAX_FAILURES, EngineSettings
from capmix.engine.stage import PartOutcome
from capmix.engine.worker import FAILED, STOPPED, Job, Reply, ShardTask, WorkPlan
from capmix.errors import UserError
from capmix.settings.counted import counted, plural
from capmix.storage.filesystem import without_secrets
from capmix.storage.layout import SAMPLES, part_name
from capmix.storage.marker import Counts

log = logging.getLogger(__name__)

ATTEMPTS = 3  # per shard, if its worker dies or another error occurs


class Engine(Protocol):
    """Executes tasks, with at most `workers` of them at a time."""

    workers: int

    @property
    def active(self) -> int:
        """Number of workers that are running now."""
        ...

    def plan(self) -> WorkPlan:
        """Return what is to be done. Raises UserError."""
        ...

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        """Yield a reply for each task, as they finish. `on_seen` gets the progress of each part."""
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
    """Compute every missing part of the job's stages. Return the counts of each stage, over all
    its parts.

    Progress (images/s, time left, dropped, failed) is written to standard error. Raises UserError
    if more than `max_failures` (a fraction) of the rows failed, or if a shard could not be
    processed. If `rows`, the number of rows of the pool, is given, the run stops as soon as the
    budget is certain to be exceeded. If the job indexes the pool while it computes other stages,
    the number is estimated. Finished parts are kept in any case.
    """
    with closing(_engine(job, settings)) as engine:
        with _waiting():
            plan = engine.plan()
        workers = min(engine.workers, max(1, len(plan.tasks)))
        run = _Run(job, plan, workers, max_failures, rows)
        if run.plan.tasks:
            with announced(job.store) as others:
                run.make(engine, shuffled(run.plan.tasks) if others else run.plan.tasks)
        else:
            forget_dead(job.store)
        run.remove_partial()
    try:
        found = run.counts()
    except UserError as error:
        raise UserError(f"{error} {run.lost_shards()}".rstrip()) from error
    if run.lost:
        raise UserError(run.lost_shards())
    return found


def _waiting() -> Display:
    """Return the progress display for the time in which models are loaded and parts checked."""
    return Display(lambda: View("prepare", ""))


def _engine(job: Job, settings: EngineSettings) -> Engine:
    if settings.name == "ray":
        from capmix.engine.ray import Cluster

        return Cluster(job, settings)
    from capmix.engine.local import local_engine

    return local_engine(job, settings)


@dataclass
class _Run:
    """State of a running or finished job. `made` has the results of this run, by stage."""

    job: Job
    plan: WorkPlan
    workers: int
    max_failures: float
    rows: int | None
    made: dict[int, PartOutcome] = field(default_factory=dict)
    lost: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    def make(self, engine: Engine, tasks: Sequence[ShardTask]) -> None:
        """Process `tasks`. Raises UserError if a worker reports one or if too many rows fail."""
        started = time.monotonic()
        shown = JobProgress(self._stages(), lambda: engine.active)
        with Display(shown.view, shown.views):
            for attempt in range(ATTEMPTS):
                self.lost = []
                for reply in engine.run(tasks, shown.add):
                    shown.end(reply)
                    self._take(reply, attempt, shown)
                tasks = [reply.task for reply in self.lost if reply.task is not None]
                if not tasks:
                    break
        self.seconds = time.monotonic() - started

    def remove_partial(self) -> None:
        """Remove what runs that were killed have left of parts that are finished."""
        todo = {(task.shard.name, number) for task in self.plan.tasks for number in task.stages}
        remove_finished(self.job.store, {
            folder: [shard for shard in self.job.shards if (shard.name, number) not in todo]
            for number, folder in enumerate(self.plan.folders)
        }, lambda: is_alone(self.job.store))  # fmt: skip

    @property
    def indexes_meanwhile(self) -> bool:
        """Whether the job indexes the pool together with other stages."""
        return SAMPLES in self.plan.folders and len(self.plan.folders) > 1

    def _stages(self) -> dict[int, StageProgress]:
        """Return the progress of each stage, with row counts from the index or existing parts."""
        todo: dict[int, set[str]] = {}
        for task in self.plan.tasks:
            for number in task.stages:
                todo.setdefault(number, set()).add(task.shard.name)
        indexed = self._counts_of(SAMPLES) if self.rows or self.indexes_meanwhile else {}
        if self.indexes_meanwhile:  # parts that are out of date do not count
            for name in todo.get(self.plan.folders.index(SAMPLES), ()):
                indexed.pop(name, None)
        has_bytes = all(shard.bytes for shard in self.job.shards)
        weights = {shard.name: shard.bytes if has_bytes else 1 for shard in self.job.shards}
        found = {}
        for number, names in sorted(todo.items()):
            folder = self.plan.folders[number]
            known = {} if folder == SAMPLES else indexed
            is_partial = self.indexes_meanwhile or not known
            made = self._counts_of(folder) if self.job.retry or is_partial else {}
            sizes: dict[str, int | None] = {}
            before = Sized()
            for shard in self.job.shards:
                name, counts = shard.name, made.get(shard.name)
                rows = known.get(name) or counts
                if name not in names:
                    before.rows += rows.total if rows else 0
                    before.weight += weights[name] if rows else 0
                elif self.job.retry and counts is not None:
                    sizes[name] = counts.failed.total()
                    before.rows += counts.total - counts.failed.total()
                else:
                    sizes[name] = rows.total if rows else None
            found[number] = StageProgress(
                self.plan.names[number], self.unit(number), sizes, weights, before
            )
        return found

    def _counts_of(self, folder: str) -> dict[str, Counts]:
        """Return the counts of each existing part of a stage, by shard."""
        store = self.job.store
        with store.listed([folder]):
            markers = {
                s.name: store.read_marker(part_name(folder, s.name)) for s in self.job.shards
            }
        return {name: one.counts for name, one in markers.items() if one is not None}

    def unit(self, number: int) -> str:
        """Return the name of one row of a stage, for messages."""
        return "image" if self.plan.of_samples[number] else "row"

    def _take(self, reply: Reply, attempt: int, shown: JobProgress) -> None:
        if reply.state == STOPPED or reply.task is None:
            raise UserError(reply.message)
        for number, outcome in reply.outcomes.items():
            self.made.setdefault(number, PartOutcome()).add(outcome)
        if reply.state == FAILED:
            self.lost.append(reply)
            following = "will be retried" if attempt + 1 < ATTEMPTS else "giving up"
            message = f"shard {reply.task.shard.name}: {reply.message}; {following}"
            if reply.details and attempt + 1 == ATTEMPTS:
                message += f"\n{reply.details}"
            log.warning("%s", without_secrets(message))
            return
        for number in reply.outcomes:
            self._log_part(number, reply.task.shard.name, reply.outcomes[number])
            counts = self.made[number].counts
            rows, is_about = self._total(number, shown)
            if not self.job.retry and is_hopeless(counts, self.max_failures, rows):
                with self.job.store.listed([self.plan.folders[number]]):
                    found = self._examples(number)
                name = f"{self.plan.names[number]} stopped early"
                check_failures(name, counts, self.max_failures, found, rows, is_about=is_about)

    def _total(self, number: int, shown: JobProgress) -> tuple[int | None, bool]:
        """Return the number of rows of an unfinished stage, and whether it is an estimate.

        The number is None if it is unknown.
        """
        if not self.plan.of_samples[number]:
            return None, False
        if not self.indexes_meanwhile:
            return self.rows, False
        stage = shown.stages[number]
        return (stage.total, stage.is_about) if stage.parts_left else (None, False)

    def counts(self) -> list[Counts]:
        """Return and log the counts of each stage, over all its parts.

        Raises UserError if more rows failed than the budget allows.
        """
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
            log.info("%s: %s", name, self._summary(number, counts))
            if counts.failed:
                rows = unread_rows(counts, unread, len(self.job.shards))
                check_failures(name, counts, self.max_failures, lines, unread=rows)
                # The stage before has probably failed on the same rows, which are logged already.
                is_logged = bool(found) and found[-1].failed == counts.failed
                if number in self.made and not is_logged:
                    log.warning("%s: %s", name, failed_line(counts, lines))
            found.append(counts)
        return found

    def _examples(self, number: int) -> list[str]:
        return examples(self.job.store, self.plan.folders[number], self.job.shards)

    def _log_part(self, number: int, shard: str, outcome: PartOutcome) -> None:
        log.debug(
            "%s: shard %s, %s in %s", self.plan.names[number], shard, summary(outcome.counts),
            duration(outcome.seconds),
        )  # fmt: skip

    def _summary(self, number: int, counts: Counts) -> str:
        """Format a summary: `9,998 images in 3 min 12 s (52 images/s), 2 failed (broken_image 2), 0
        dropped; model busy 97%`."""
        unit = self.unit(number)
        images = counted(counts.ok, unit)
        others = ", ".join(
            f"{found.total():,} {name}" + (f" ({reasons(found)})" if found else "")
            for name, found in (("failed", counts.failed), ("dropped", counts.dropped))
        )
        if number not in self.made:
            return f"{images} already done, {others}"
        made = self.made[number]
        before = counts.ok - made.counts.ok + made.resumed
        of_all = sum(one.seconds for one in self.made.values())
        # Stages that run together, shard by shard, share the elapsed time in proportion.
        seconds = max(self.seconds * made.seconds / of_all if of_all else 0.0, 1e-6)
        rate = rate_text((made.counts.total - made.resumed) / seconds, plural(unit))
        text = f"{images} in {duration(seconds)} ({rate}), {others}"
        text += f", {before:,} already done" if before > 0 else ""
        if made.busy.images and made.seconds:
            text += f"; model busy {made.busy.seconds / made.seconds:.0%}"
        return text + (f", {self.workers} workers" if self.workers > 1 else "")

    def lost_shards(self) -> str:
        """Return the error message for shards that failed in every attempt; "" if none did."""
        if not self.lost:
            return ""
        names = [reply.task.shard.name for reply in self.lost if reply.task is not None]
        shown = "; ".join(
            f"{name}: {reply.message}" for name, reply in zip(names[:3], self.lost, strict=False)
        )
        return (
            f"{len(names)} of {counted(len(self.job.shards), 'shard')} could not be processed in "
            f"{ATTEMPTS} attempts ({shown}). All other shards are done; rerun the same command to "
            "retry these."
        )


def summary(counts: Counts) -> str:
    """Format counts as text."""
    text = f"{counts.ok:,} ok, {counts.dropped.total():,} dropped, {counts.failed.total():,} failed"
    why = reasons(counts.dropped + counts.failed)
    return f"{text} ({why})" if why else text
