"""The Ray engine: the same workers as actors of a cluster, one model load an actor.

Only the job (the pool's listing and settings), shard names and counts travel. Images are read,
and parts written, where the actor runs.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capmix.engine.deaths import IN_A_ROW, Deaths
from capmix.engine.seen import OnSeen, Seen
from capmix.engine.settings import EngineSettings
from capmix.engine.worker import FAILED, Job, Reply, ShardTask, Worker, WorkPlan, answered
from capmix.errors import UserError

log = logging.getLogger(__name__)

TOLD_AFTER = 60.0  # seconds without any answer
READY = "ready"
NEWS_EVERY = 1.0  # seconds


class Board:
    """Where actors say how far they have come. It is an actor too, near whoever reads it."""

    def __init__(self) -> None:
        self._news: list[Seen] = []

    async def tell(self, seen: Seen) -> None:
        self._news.append(seen)

    async def news(self) -> list[Seen]:
        """All reports since the last call, after a while."""
        await asyncio.sleep(NEWS_EVERY)
        news, self._news = self._news, []
        return news


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

    def run(self, job: list[Any], task: ShardTask, board: Any) -> Any:
        def tell(seen: Seen) -> None:
            board.tell.remote(seen)

        return self._answer(job, lambda worker: worker.run(task, tell))

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
        self._board = _board(self._ray)
        self._placed: set[int] = set()
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

    @property
    def active(self) -> int:
        """Actors that have a place; others wait for room."""
        return len(self._placed)

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        """Actors are asked for a shard when they are ready, so that one that waits for a node holds
        up no other. For one that dies another is made, wherever there is room."""
        while len(self._actors) < min(self.workers, len(tasks)):
            self._actors.append(self._make())
        waiting = deque(tasks)
        asked: dict[Any, tuple[int, ShardTask | None]] = {}
        for number, actor in enumerate(self._actors):  # also those that there may be no room for
            asked[actor.ready.remote(self._job)] = number, None
        news = _News(self._ray, self._board, on_seen)
        while waiting or any(task for _, task in asked.values()):
            if not asked:
                raise UserError(f"ray: every worker ended {IN_A_ROW} times in a row; see its logs")
            done = news.wait(list(asked), TOLD_AFTER)
            if done is None:
                if not any(task for _, task in asked.values()):
                    log.warning("ray: no resources for a worker yet; %d shards wait", len(waiting))
                continue
            number, task = asked.pop(done)
            try:
                answer = self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                self._placed.discard(number)
                if task is not None:
                    yield Reply(task, FAILED, message=f"its worker ended: {_about(error)}")
                    waiting.reverse()  # the neighbours of a shard may be as deadly
                if self._deaths.died(number, len(self._actors)):
                    self._actors[number] = self._make()
                    asked[self._actors[number].ready.remote(self._job)] = number, None
                continue
            self._placed.add(number)
            if answer != READY:
                self._deaths.answered(number)
                yield answer
            if waiting:
                following = waiting.popleft()
                reference = self._actors[number].run.remote(self._job, following, self._board)
                asked[reference] = number, following

    def close(self) -> None:
        for actor in [*self._actors, self._board]:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._actors = []


class _News:
    """Waits for answers, and passes on what the board has meanwhile. A board that dies with its
    node takes the news of progress with it, and nothing else."""

    def __init__(self, ray: Any, board: Any, on_seen: OnSeen):
        self._ray, self._board, self._on_seen = ray, board, on_seen
        self._asked: Any = board.news.remote()

    def wait(self, references: list[Any], timeout: float) -> Any:
        """The first of the references that is answered; None where none is in `timeout` seconds."""
        ends_at = time.monotonic() + timeout
        while (left := ends_at - time.monotonic()) > 0:
            also = [] if self._asked is None else [self._asked]
            done, _ = self._ray.wait([*also, *references], num_returns=1, timeout=left)
            if not done:
                return None
            if done[0] != self._asked:
                return done[0]
            self._pass_on()
        return None

    def _pass_on(self) -> None:
        try:
            news = self._ray.get(self._asked)
        except self._ray.exceptions.RayError:
            self._asked = None
            return
        self._asked = self._board.news.remote()
        for seen in news:
            self._on_seen(seen)


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


def _board(ray: Any) -> Any:
    """A board on this node, or on another one where this has no room for actors."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


def _about(error: Exception) -> str:
    """Ray's first line says what died, and the last one why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
