"""The Ray engine: the same workers as actors of a cluster, one model load an actor.

Only the job (the pool's listing and settings), shard names and counts travel. Images are read,
and parts written, where the actor runs.
"""

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capmix.engine.deaths import IN_A_ROW, Deaths
from capmix.engine.settings import EngineSettings
from capmix.engine.stage import OnCount
from capmix.engine.worker import FAILED, Job, Reply, ShardTask, Worker, WorkPlan, answered
from capmix.errors import UserError

log = logging.getLogger(__name__)

TOLD_AFTER = 60.0  # seconds without any answer
READY = "ready"


class Actor:
    """A Worker that is made when it is first asked; errors of the user come back as replies.

    The job comes with every question, as a reference in a list: Ray leaves such a one alone, and it
    is fetched once.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def ready(self, job: list[Any]) -> Any:
        return self._answer(job, lambda _: READY)

    def plan(self, job: list[Any]) -> Any:
        return self._answer(job, lambda worker: worker.plan())

    def run(self, job: list[Any], task: ShardTask) -> Any:
        return self._answer(job, lambda worker: worker.run(task, lambda _: None))

    def _answer(self, job: list[Any], question: Callable[[Worker], Any]) -> Any:
        import ray

        def ask() -> Any:
            self._worker = self._worker or Worker(ray.get(job[0]))
            return question(self._worker)

        return answered(ask)


class Cluster:
    """Actors of a Ray cluster. One that dies, with its node or alone, costs the shard it was at."""

    def __init__(self, job: Job, settings: EngineSettings):
        self._ray, is_here = connected(settings.address)
        gpus, cpus, room = resources(self._ray, job.needs_gpu, settings)
        if not room and is_here:
            raise UserError(
                f"ray: a worker asks for {cpus:g} CPUs and {gpus:g} GPUs, more than this machine "
                "has; name less (--cpus-per-worker, --gpus-per-worker) or a cluster (--address)"
            )
        room = max(1, room)  # a cluster may grow
        self.workers = min(settings.workers or room, max(1, len(job.shards)))
        remote = self._ray.remote(num_cpus=cpus, num_gpus=gpus)
        self._make: Callable[[], Any] = remote(Actor).remote
        self._job = [self._ray.put(job)]
        self._actors: list[Any] = []
        self._deaths = Deaths()

    def plan(self) -> WorkPlan:
        """Raises UserError if the worker does, or dies."""
        self._actors = [self._make()]
        answer = self._actors[0].plan.remote(self._job)
        try:
            while not self._ray.wait([answer], timeout=TOLD_AFTER)[0]:
                log.warning(
                    "ray: still waiting for the first worker; is the cluster out of resources?"
                )
            plan = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            raise UserError(f"ray: the first worker failed: {_about(error)}") from error
        if isinstance(plan, WorkPlan):
            return plan
        raise UserError(plan.message)

    def run(self, tasks: Sequence[ShardTask], on_count: OnCount) -> Iterator[Reply]:
        """Actors are asked for a shard when they are ready, so that one that waits for a node holds
        up no other. For one that dies another is made, wherever there is room."""
        while len(self._actors) < min(self.workers, len(tasks)):
            self._actors.append(self._make())
        waiting = deque(tasks)
        asked: dict[Any, tuple[int, ShardTask | None]] = {}
        for number, actor in enumerate(self._actors):  # also those that there may be no room for
            asked[actor.ready.remote(self._job)] = number, None
        while waiting or any(task for _, task in asked.values()):
            if not asked:
                raise UserError(f"ray: every worker ended {IN_A_ROW} times in a row; see its logs")
            done, _ = self._ray.wait(list(asked), num_returns=1, timeout=TOLD_AFTER)
            if not done:
                if not any(task for _, task in asked.values()):
                    log.warning("ray: no resources for a worker yet; %d shards wait", len(waiting))
                continue
            number, task = asked.pop(done[0])
            try:
                answer = self._ray.get(done[0])
            except self._ray.exceptions.RayError as error:
                if task is not None:
                    yield Reply(task, FAILED, message=f"its worker ended: {_about(error)}")
                    waiting.reverse()  # the neighbours of a shard may be as deadly
                if self._deaths.died(number, len(self._actors)):
                    self._actors[number] = self._make()
                    asked[self._actors[number].ready.remote(self._job)] = number, None
                continue
            if answer != READY:
                self._deaths.answered(number)
                answer.tell(on_count)
                yield answer
            if waiting:
                following = waiting.popleft()
                reference = self._actors[number].run.remote(self._job, following)
                asked[reference] = number, following

    def close(self) -> None:
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._actors = []


def connected(address: str | None) -> tuple[Any, bool]:
    """The ray module, connected, and whether Ray was started for it on this machine alone.

    Raises UserError where it is not installed or not reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'capmix[ray]'") from error
    if ray.is_initialized():
        return ray, False
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unasked
    # Whoever reaches Ray's ports can run code. This is the most that Ray has: on Linux it listens
    # on the machine's other addresses all the same (docs/security.md).
    about: Any = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(place, log_to_driver=False, logging_level=logging.WARNING,
                 **about if place == "local" else {})  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray: no cluster at {place}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray has put a handler of its own in the place of ours, which aborts with a stack trace.
        signal.signal(signal.SIGTERM, ours)
    return ray, place == "local"


def resources(ray: Any, needs_gpu: bool, settings: EngineSettings) -> tuple[float, float, int]:
    """GPUs and CPUs of an actor, and how many actors the cluster has room for now."""
    have = ray.cluster_resources()
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if needs_gpu and have.get("GPU", 0) else 0.0
    rooms = [
        int(have.get(name, 0) / wanted)
        for name, wanted in (("GPU", gpus), ("CPU", settings.cpus_per_worker))
        if wanted
    ]
    return gpus, settings.cpus_per_worker, min(rooms, default=1)


def _about(error: Exception) -> str:
    """Ray's first line says what died, and the last one why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
