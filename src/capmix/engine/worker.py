"""What an engine puts into its processes: the stages, made once, and a function for each shard."""

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
    """What is to be made, in a form that can be sent to another process.

    `make_stages` loads models; for other processes it is a functools.partial of a function of a
    module. Of the `protected` shards parts that other settings made are refused; with `retry`,
    samples that failed are tried again. `needs_gpu` says whether a model runs on a GPU where there
    is one.
    """

    make_stages: MakeStages
    shards: Sequence[Shard]
    store: Store
    protected: Sequence[Shard] = ()
    retry: bool = False
    needs_gpu: bool = False


@dataclass(frozen=True)
class ShardTask:
    """One shard, and the numbers of the stages that have something to do there.

    `settings` is a digest of the stages' configs, as the worker that made the plan has them.
    """

    shard: Shard
    stages: tuple[int, ...]
    settings: str


@dataclass(frozen=True)
class WorkPlan:
    """Names and folders of the stages, whether their rows are the pool's samples, and what is to be
    done, in the order of the pool."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    of_samples: tuple[bool, ...]
    tasks: list[ShardTask]


@dataclass(frozen=True)
class Reply:
    """What became of a task: `made`, `failed` (it may be tried again) or `stopped` (the user has to
    fix something). `message` is for people, `details` for developers; there is no task where the
    worker could not start."""

    task: ShardTask | None
    state: str
    outcomes: dict[int, PartOutcome] = field(default_factory=dict)
    message: str = ""
    details: str = ""


def answered(question: Callable[[], Any]) -> Any:
    """What `question`, to a worker elsewhere, gives; a reply where the user has to fix something,
    as no exception gets to the engine."""
    try:
        return question()
    except UserError as error:
        return Reply(None, STOPPED, message=str(error))
    except storage_errors() as error:
        return Reply(None, STOPPED, message=f"the storage failed: {error}")


class Worker:
    """One process's share of a job. Models are loaded once."""

    def __init__(self, job: Job):
        self._job = job
        self._stages = list(job.make_stages())
        configs = json.dumps([stage.config for stage in self._stages], sort_keys=True, default=str)
        self._settings = hashlib.sha256(configs.encode()).hexdigest()[:16]
        self._begun: set[int] = set()

    def plan(self) -> WorkPlan:
        """Raises UserError for parts of other settings."""
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
        """Names of the shards in whose part something failed that may not fail again."""
        store = self._job.store
        with store.listed([stage.folder]):
            markers = {s.name: store.read_marker(stage.part(s)) for s in self._job.shards}
        return {name for name, one in markers.items() if one and may_pass(one.counts.failed)}

    def run(self, task: ShardTask, on_seen: OnSeen) -> Reply:
        """Make the parts of one shard, but for those that another run has made meanwhile; `on_seen`
        gets the progress of each.

        Raises BrokenDeviceError where this process can make no other.
        """
        outcomes: dict[int, PartOutcome] = {}
        if task.settings != self._settings:
            return Reply(task, STOPPED, message=(
                f"{socket.gethostname()}: model mismatch: this worker loaded different weights "
                "than the planner. Pin --revision on all machines"
            ))  # fmt: skip
        try:
            for number in task.stages:
                outcomes[number] = self._run_stage(number, task.shard, on_seen)
        except UserError as error:
            return Reply(task, STOPPED, outcomes, str(error))
        except BrokenDeviceError:
            raise
        except Exception as error:  # whatever it is, the other shards can be made
            message = f"{type(error).__name__}: {error}"
            is_storage = isinstance(error, storage_errors())
            details = "" if is_storage else traceback.format_exc()
            return Reply(task, FAILED, outcomes, message, details)
        return Reply(task, MADE, outcomes)

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
