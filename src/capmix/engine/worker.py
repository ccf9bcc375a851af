"""Workers: each process of an engine creates the stages once and then runs them shard by shard."""

import contextlib
import hashlib
import json
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from capmix.engine.batches import BrokenDeviceError
from capmix.engine.redo import may_pass
from capmix.engine.seen import OnSeen, Watch
from capmix.engine.stage import (
    PartOutcome,
    Stage,
    is_done,
    missing,
    refuse_other_settings,
    run_one,
)
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.filesystem import storage_errors
from capmix.storage.store import Store

MakeStages = Callable[[], Sequence[Stage]]
MADE, FAILED, STOPPED = "made", "failed", "stopped"


@dataclass(frozen=True)
class Job:
    """Description of the work, which can be sent to another process.

    `make_stages` loads the models; it must be picklable for other processes, for example a
    functools.partial of a module-level function. Parts of the `protected` shards that were created
    with other settings raise an error. With `retry`, failed samples are retried. `needs_gpu` is
    whether a model uses a GPU if there is one.
    """

    make_stages: MakeStages
    shards: Sequence[Shard]
    store: Store
    protected: Sequence[Shard] = ()
    retry: bool = False
    needs_gpu: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One shard, and the numbers of the stages that have work to do on it.

    `settings` is a digest of the configs of all stages in the worker that created the plan.
    """

    shard: Shard
    stages: tuple[int, ...]
    settings: str


@dataclass(frozen=True)
class WorkPlan:
    """Names and folders of the stages, whether they count one row per sample of the pool, and the
    tasks in the order of the pool."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    of_samples: tuple[bool, ...]
    tasks: list[ShardTask]


@dataclass(frozen=True)
class Reply:
    """Result of a task.

    `state` is `made`, `failed` (a retry may succeed) or `stopped` (the user must fix something).
    `message` is shown to the user, `details` is for developers. `task` is None if the worker could
    not start.
    """

    task: ShardTask | None
    state: str
    outcomes: dict[int, PartOutcome] = field(default_factory=dict)
    message: str = ""
    details: str = ""


def answered(question: Callable[[], Any]) -> Any:
    """Return the result of `question`, or a `stopped` Reply if it raises an error that the user
    must fix: exceptions do not cross the process boundary."""
    try:
        return question()
    except UserError as error:
        return Reply(None, STOPPED, message=str(error))
    except storage_errors() as error:
        return Reply(None, STOPPED, message=f"storage error: {error}")


class Worker:
    """Runs the tasks of one process. Models are loaded once."""

    def __init__(self, job: Job):
        self._job = job
        self._stages = list(job.make_stages())
        configs = json.dumps([stage.config for stage in self._stages], sort_keys=True, default=str)
        self._settings = hashlib.sha256(configs.encode()).hexdigest()[:16]
        self._begun: set[int] = set()

    def plan(self) -> WorkPlan:
        """Return the plan. Raises UserError for protected parts from other settings."""
        job = self._job
        for stage in self._stages if job.protected else ():
            refuse_other_settings(stage, job.protected, job.store)
        todo: list[set[str]] = []
        for stage in self._stages:
            names = {shard.name for shard in missing(stage, job.shards, job.store)}
            if job.retry:
                names |= self._failed(stage)
            for earlier, waiting in zip(self._stages, todo, strict=False):
                if earlier.folder in stage.reads:
                    names |= waiting
            todo.append(names)
        tasks = []
        for shard in job.shards:
            numbers = tuple(n for n, names in enumerate(todo) if shard.name in names)
            if numbers:
                tasks.append(ShardTask(shard, numbers, self._settings))
        stages = self._stages
        return WorkPlan(
            tuple(stage.name for stage in stages),
            tuple(stage.folder for stage in stages),
            tuple(stage.of_samples for stage in stages),
            tasks,
        )

    def _failed(self, stage: Stage) -> set[str]:
        """Return the names of the shards whose part has failed samples that are worth a retry."""
        store = self._job.store
        with store.listed([stage.folder]):
            markers = {s.name: store.read_marker(stage.part(s)) for s in self._job.shards}
        return {name for name, one in markers.items() if one and may_pass(one.counts.failed)}

    def run(self, task: ShardTask, on_seen: OnSeen, following: ShardTask | None = None) -> Reply:
        """Compute the parts of one shard, except for parts that another run has finished meanwhile.

        `on_seen` gets the progress of each part. `following` is the task that probably comes next;
        its shard may be read ahead. Raises BrokenDeviceError if this process cannot process any
        further shard.
        """
        outcomes: dict[int, PartOutcome] = {}
        if task.settings != self._settings:
            return Reply(task, STOPPED, message=(
                f"{socket.gethostname()}: model mismatch: this worker loaded different weights "
                "than the planner. Pin --revision on all machines"
            ))  # fmt: skip
        try:
            self._follow(following)
            for number in task.stages:
                outcomes[number] = self._run_stage(number, task.shard, on_seen)
        except UserError as error:
            return Reply(task, STOPPED, outcomes, str(error))
        except BrokenDeviceError:
            raise
        except Exception as error:  # must not stop the other shards
            message = f"{type(error).__name__}: {error}"
            is_storage = isinstance(error, storage_errors())
            details = "" if is_storage else traceback.format_exc()
            return Reply(task, FAILED, outcomes, message, details)
        return Reply(task, MADE, outcomes)

    def close(self) -> None:
        """Drop what has been read ahead."""
        self._follow(None)

    def _follow(self, following: ShardTask | None) -> None:
        """Announce the next shard to the first of its stages that reads ahead.

        A retry reads only some samples of a shard, so that nothing is announced.
        """
        found = None
        if following is not None and not self._job.retry:
            stages = (self._stages[number] for number in following.stages)
            found = next((one.follow for one in stages if one.follow is not None), None)
        with contextlib.suppress(UserError, *storage_errors()):  # raised again when it is its turn
            for stage in self._stages:
                if stage.follow is not None and stage.follow != found:
                    stage.follow(None)
            if found is not None and following is not None:
                found(following.shard)

    def _run_stage(self, number: int, shard: Shard, on_seen: OnSeen) -> PartOutcome:
        store, stage = self._job.store, self._stages[number]
        marker = store.read_marker(stage.part(shard)) if is_done(stage, shard, store) else None
        if marker is not None and not (self._job.retry and may_pass(marker.counts.failed)):
            return PartOutcome()
        watch = Watch(shard.name, number, on_seen, is_first=number not in self._begun)
        outcome = run_one(watch.of(stage), shard, store, watch.on_count, retry=self._job.retry)
        if outcome.counts.ok or outcome.counts.dropped:
            self._begun.add(number)
        return watch.finished(outcome)
