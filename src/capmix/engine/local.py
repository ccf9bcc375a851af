"""The local engine: this process, or one worker process per GPU of this machine."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from capmix.engine.batches import BrokenDeviceError
from capmix.engine.deaths import IN_A_ROW, Deaths
from capmix.engine.process import Process, answer_tasks
from capmix.engine.seen import OnSeen, Seen
from capmix.engine.settings import EngineSettings
from capmix.engine.worker import FAILED, Job, Reply, ShardTask, Worker, WorkPlan
from capmix.errors import UserError


class InProcess:
    """Every shard in this process, one after the other."""

    workers = active = 1

    def __init__(self, job: Job):
        self._worker = Worker(job)

    def plan(self) -> WorkPlan:
        return self._worker.plan()

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        for task in tasks:
            try:
                yield self._worker.run(task, on_seen)
            except BrokenDeviceError as error:
                raise UserError(
                    f"shard {task.shard.name}: {error}. Rerun the same command to resume; with "
                    "--workers 1 another process takes the place of one that breaks."
                ) from error

    def close(self) -> None:
        """Nothing is held."""


class Processes:
    """`workers` processes, each with its own GPU or its share of the cores.

    A process that dies costs the shard that it was at; another takes its place.
    """

    def __init__(self, job: Job, workers: int, gpus: Sequence[str]):
        self.workers = workers
        self._job, self._gpus = job, gpus
        self._processes: dict[int, Process] = {}
        self._deaths = Deaths()

    @property
    def active(self) -> int:
        """Processes that are at work, or will be at once."""
        return len(self._deaths.left(self.workers))

    def plan(self) -> WorkPlan:
        """Raises UserError if the worker does, or cannot be started."""
        plan = self._process(0).ask(None)
        if isinstance(plan, WorkPlan):
            return plan
        raise UserError(plan.message)

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        """Raises UserError where all workers end again and again before they have made a part."""
        waiting = deque(tasks)
        idle = deque(self._deaths.left(self.workers))
        at_work: dict[int, ShardTask] = {}
        while waiting or at_work:
            if not idle and not at_work:
                raise UserError(f"every worker process ended {IN_A_ROW} times in a row; see above")
            while waiting and idle:
                number, task = idle.popleft(), waiting.popleft()
                self._process(number).send(task)
                at_work[number] = task
            ready = wait([self._processes[number].connection for number in at_work])
            for number in [n for n in at_work if self._processes[n].connection in ready]:
                reply = self._processes[number].receive()
                if isinstance(reply, Seen):
                    on_seen(reply)
                    continue
                task = at_work.pop(number)
                if reply is not None:
                    self._deaths.answered(number)
                    idle.append(number)
                else:
                    reply = Reply(task, FAILED, message=self._buried(number))
                    waiting.reverse()  # the neighbours of a shard may be as deadly
                    if self._deaths.died(number, self.workers):
                        idle.append(number)
                yield reply

    def close(self) -> None:
        for process in self._processes.values():
            process.connection.close()  # those that wait for a task end by themselves, side by side
        for process in self._processes.values():
            process.end()

    def _process(self, number: int) -> Process:
        if number not in self._processes:
            self._processes[number] = Process(
                self._job, answer_tasks, self._environment(number), self._cores(number)
            )
        return self._processes[number]

    def _environment(self, number: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self._gpus[number]} if number < len(self._gpus) else {}

    def _cores(self, number: int) -> list[int]:
        """The cores of one of several workers without a GPU; none where they are too few."""
        if self._gpus or not hasattr(os, "sched_getaffinity"):
            return []
        return sorted(os.sched_getaffinity(0))[number :: self.workers]

    def _buried(self, number: int) -> str:
        return f"its worker process ended ({self._processes.pop(number).end()})"


def local_engine(job: Job, settings: EngineSettings) -> InProcess | Processes:
    """This process; or processes where several are asked for, or there are several GPUs."""
    gpus = _visible_gpus() if job.needs_gpu else []
    workers = settings.workers or (len(gpus) if len(gpus) > 1 else 0)
    if not workers:
        return InProcess(job)
    if gpus and workers > len(gpus):
        raise UserError(f"--workers {workers}: this machine has {len(gpus)} GPUs; one worker each")
    return Processes(job, workers, gpus)


def _visible_gpus() -> list[str]:
    try:
        import torch
    except ImportError:  # the backend says what to install
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return [one for one in named.split(",") if one][:count] or [str(i) for i in range(count)]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
