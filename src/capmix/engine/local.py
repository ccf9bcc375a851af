"""The local engine: runs in this process, or in one worker process per GPU of this machine."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from multiprocessing.connection import wait

from capmix.engine.batches import BrokenDeviceError
from capmix.engine.deaths import IN_A_ROW, Deaths
from capmix.engine.prefetch import LOCAL_WORKERS
from capmix.engine.process import Process, answer_tasks
from capmix.engine.seen import OnSeen, Seen
from capmix.engine.settings import EngineSettings
from capmix.engine.tasks import TaskQueue
from capmix.engine.worker import FAILED, Job, Reply, ShardTask, Worker, WorkPlan
from capmix.errors import UserError


class InProcess:
    """Engine that processes all shards in this process, one after the other."""

    workers = active = 1

    def __init__(self, job: Job):
        self._worker = Worker(job)

    def plan(self) -> WorkPlan:
        return self._worker.plan()

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        for task, following in zip_longest(tasks, tasks[1:]):
            try:
                yield self._worker.run(task, on_seen, following)
            except BrokenDeviceError as error:
                raise UserError(
                    f"shard {task.shard.name}: {error}. Rerun the same command to resume; with "
                    "--workers 1 capmix replaces a worker process that fails."
                ) from error

    def close(self) -> None:
        self._worker.close()


class Processes:
    """Engine with `workers` processes, each with its share of the CPU cores and perhaps a GPU.

    When a process dies, its current shard is retried and a new process replaces it.
    """

    def __init__(self, job: Job, workers: int, gpus: Sequence[str]):
        self.workers = workers
        self._job, self._gpus = job, gpus
        self._processes: dict[int, Process] = {}
        self._deaths = Deaths()
        self._suspects: set[str] = set()

    @property
    def active(self) -> int:
        """Number of processes that are running or about to be started."""
        return len(self._deaths.left(self.workers))

    def plan(self) -> WorkPlan:
        """Return the plan. Raises UserError if the worker does or cannot be started."""
        plan = self._process(0).ask(None)
        if isinstance(plan, WorkPlan):
            return plan
        raise UserError(plan.message)

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        """Yield a reply per task. Raises UserError if all workers keep dying without a result."""
        waiting = TaskQueue(tasks, self.active, self._suspects)
        idle = deque(self._deaths.left(self.workers))
        at_work: dict[int, ShardTask] = {}
        while waiting or at_work:
            if not idle and not at_work:
                raise UserError(
                    f"every worker process exited {IN_A_ROW} times in a row; see the messages above"
                )
            given = [idle.popleft() for _ in range(min(len(idle), len(waiting)))]
            at_work |= {number: waiting.take(number) for number in given}
            for number in given:
                self._process(number).send((at_work[number], waiting.reserve(number)))
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
                    message = self._buried(number) + waiting.died(number, task)
                    reply = Reply(task, FAILED, message=message)
                    if self._deaths.died(number, self.workers):
                        idle.append(number)
                yield reply

    def close(self) -> None:
        for process in self._processes.values():
            process.connection.close()  # idle processes exit on their own, in parallel
        for process in self._processes.values():
            process.end()

    def _process(self, number: int) -> Process:
        if number not in self._processes:
            self._processes[number] = Process(
                self._job, answer_tasks, self._environment(number), self._cores(number)
            )
        return self._processes[number]

    def _environment(self, number: int) -> dict[str, str]:
        """Variables of one worker: its GPU, and how many workers share the cores if not pinned."""
        shared = {} if self._cores(number) else {LOCAL_WORKERS: str(self.workers)}
        gpu = self._gpus[number : number + 1]
        return shared | ({"CUDA_VISIBLE_DEVICES": gpu[0]} if gpu else {})

    def _cores(self, number: int) -> list[int]:
        """CPU cores of one worker; empty if there are too few or no affinity API.

        Workers with a GPU also get a share: each starts a preparing thread per core that it has.
        Every n-th core is taken, so that hyper-threads of a core mostly go to the same worker.
        """
        if not hasattr(os, "sched_getaffinity"):
            return []
        return sorted(os.sched_getaffinity(0))[number :: self.workers]

    def _buried(self, number: int) -> str:
        return f"its worker process exited ({self._processes.pop(number).end()})"


def local_engine(job: Job, settings: EngineSettings) -> InProcess | Processes:
    """Return the engine: worker processes if `workers` is set or there are several GPUs, otherwise
    this process. Raises UserError if there are more workers than GPUs."""
    gpus = _visible_gpus() if job.needs_gpu else []
    workers = settings.workers or (len(gpus) if len(gpus) > 1 else 0)
    if not workers:
        return InProcess(job)
    if gpus and workers > len(gpus):
        raise UserError(
            f"--workers {workers}: this machine has {len(gpus)} GPUs; use at most one worker per "
            "GPU"
        )
    return Processes(job, workers, gpus)


def _visible_gpus() -> list[str]:
    try:
        import torch
    except ImportError:  # the backend reports what to install
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    count = torch.cuda.device_count()
    return [one for one in named.split(",") if one][:count] or [str(i) for i in range(count)]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
