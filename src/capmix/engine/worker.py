"""What an engine puts into its processes: the stages, made once, and a function for each shard."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from capmix.batches import BrokenDeviceError
from capmix.engine.redo import may_pass
from capmix.engine.stage import OnCount, Outcome, Stage, missing, refuse_other_settings, run_one
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.store import Store

MakeStages = Callable[[], Sequence[Stage]]
MADE, FAILED, STOPPED = "made", "failed", "stopped"
DEATHS = 5  # of a worker in a row, without a shard between them, after which none takes its place


@dataclass(frozen=True)
class Job:
    """What is to be made, in a form that can be sent to another process.

    `make_stages` loads models; for other processes it is a functools.partial of a function of a
    module. With `protect`, parts that other settings made are refused; with `retry`, samples that
    failed are tried again. `needs_gpu` says whether a model runs on a GPU where there is one.
    """

    make_stages: MakeStages
    shards: Sequence[Shard]
    store: Store
    protect: bool = False
    retry: bool = False
    needs_gpu: bool = False


@dataclass(frozen=True)
class Task:
    """One shard, and the numbers of the stages that have something to do there."""

    shard: Shard
    stages: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Names and folders of the stages, and what is to be done, in the order of the pool."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    tasks: list[Task]


@dataclass(frozen=True)
class Reply:
    """What became of a task: `made`, `failed` (it may be tried again) or `stopped` (the user has to
    mend something). `message` is for people, `details` for developers; there is no task where the
    worker could not start."""

    task: Task | None
    state: str
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    message: str = ""
    details: str = ""

    def tell(self, on_count: OnCount) -> None:
        """The rows that another process has counted."""
        for outcome in self.outcomes.values():
            on_count(outcome.counts)


class Worker:
    """One process's share of a job. Models are loaded once."""

    def __init__(self, job: Job):
        self._job = job
        self._stages = list(job.make_stages())

    def plan(self) -> Plan:
        """Raises UserError for parts of other settings."""
        job = self._job
        if job.protect:
            for stage in self._stages:
                refuse_other_settings(stage, job.shards, job.store)
        waiting: dict[str, list[int]] = {}
        for number, stage in enumerate(self._stages):
            for shard in missing(stage, job.shards, job.store):
                waiting.setdefault(shard.name, []).append(number)
            if job.retry:
                self._add_failed(number, stage, waiting)
        tasks = [Task(s, tuple(waiting[s.name])) for s in job.shards if s.name in waiting]
        names = tuple(stage.name for stage in self._stages)
        return Plan(names, tuple(stage.folder for stage in self._stages), tasks)

    def _add_failed(self, number: int, stage: Stage, waiting: dict[str, list[int]]) -> None:
        store = self._job.store
        with store.listed([stage.folder]):
            for shard in self._job.shards:
                marker = store.read_marker(stage.part(shard))
                if marker is not None and may_pass(marker.counts.failed):
                    numbers = waiting.setdefault(shard.name, [])
                    if number not in numbers:
                        numbers.append(number)

    def run(self, task: Task, on_count: OnCount) -> Reply:
        """Make the parts of one shard, but for those that another run has made meanwhile.

        Raises BrokenDeviceError where this process can make no other.
        """
        outcomes: dict[int, Outcome] = {}
        try:
            for number in task.stages:
                outcomes[number] = self._run_stage(self._stages[number], task.shard, on_count)
        except UserError as error:
            return Reply(task, STOPPED, outcomes, str(error))
        except BrokenDeviceError:
            raise
        except Exception as error:  # whatever it is, the other shards can be made
            message = f"{type(error).__name__}: {error}"
            return Reply(task, FAILED, outcomes, message, traceback.format_exc())
        return Reply(task, MADE, outcomes)

    def _run_stage(self, stage: Stage, shard: Shard, on_count: OnCount) -> Outcome:
        store = self._job.store
        is_done = store.is_done(stage.part(shard), stage.inputs(shard), stage.config)
        marker = store.read_marker(stage.part(shard)) if is_done else None
        if marker is not None and not (self._job.retry and may_pass(marker.counts.failed)):
            return Outcome()
        return run_one(stage, shard, store, on_count, retry=self._job.retry)
