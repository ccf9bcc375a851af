"""The Ray engine: runs workers as actors of a Ray cluster; each actor loads the model once.

Only the job (the pool's listing and settings), shard names and counts are sent between nodes.
Each actor reads images and writes parts on its own node.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from capmix.engine.deaths import IN_A_ROW, Deaths
from capmix.engine.seen import OnSeen, Seen
from capmix.engine.settings import EngineSettings
from capmix.engine.tasks import TaskQueue
from capmix.engine.worker import FAILED, Job, Reply, ShardTask, Worker, WorkPlan, answered
from capmix.errors import UserError

log = logging.getLogger(__name__)

WARN_AFTER = 60.0  # seconds without any answer
READY = "ready"
NEWS_EVERY = 1.0  # seconds


class Board:
    """Actor that collects the progress reports of all workers, near the process that reads them."""

    def __init__(self) -> None:
        self._news: list[Seen] = []

    async def report(self, seen: Seen) -> None:
        self._news.append(seen)

    async def news(self) -> list[Seen]:
        """Wait NEWS_EVERY seconds, then return all reports since the last call."""
        await asyncio.sleep(NEWS_EVERY)
        news, self._news = self._news, []
        return news


class Actor:
    """Actor around a Worker, which is created at the first call. User errors become replies.

    The job is passed to every call as a reference in a list: Ray does not resolve references
    inside a list, so that the actor fetches the job only once.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def ready(self, job: list[Any]) -> Any:
        return self._answer(job, lambda _: READY)

    def plan(self, job: list[Any]) -> Any:
        return self._answer(job, lambda worker: worker.plan())

    def run(self, job: list[Any], task: ShardTask, following: ShardTask | None, board: Any) -> Any:
        def report(seen: Seen) -> None:
            board.report.remote(seen)

        return self._answer(job, lambda worker: worker.run(task, report, following))

    def _answer(self, job: list[Any], question: Callable[[Worker], Any]) -> Any:
        import ray

        def ask() -> Any:
            self._worker = self._worker or Worker(ray.get(job[0]))
            return question(self._worker)

        return answered(ask)


class Cluster:
    """Engine with actors of a Ray cluster.

    When an actor or its node dies, only the current shard of the actor is lost, and is retried.
    """

    def __init__(self, job: Job, settings: EngineSettings):
        self._ray, is_here = connected(settings.address)
        gpus, cpus, room = resources(self._ray, job.needs_gpu, settings)
        if not room and is_here:
            raise UserError(
                f"ray: a worker needs {cpus:g} CPUs and {gpus:g} GPUs, more than this machine has; "
                "lower --cpus-per-worker or --gpus-per-worker, or pass a cluster with --address"
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
        self._suspects: set[str] = set()

    def plan(self) -> WorkPlan:
        """Return the plan. Raises UserError if the worker does or dies."""
        self._actors = [self._make()]
        answer = self._actors[0].plan.remote(self._job)
        try:
            while not self._ray.wait([answer], timeout=WARN_AFTER)[0]:
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
        """Number of actors that have been placed; others wait for resources."""
        return len(self._placed)

    def run(self, tasks: Sequence[ShardTask], on_seen: OnSeen) -> Iterator[Reply]:
        """Yield a reply per task.

        An actor gets its first shard when it is ready, so that actors that wait for a node do not
        hold up the others. An actor that dies is replaced, on any node with free resources. Raises
        UserError if all workers keep dying.
        """
        while len(self._actors) < min(self.workers, len(tasks)):
            self._actors.append(self._make())
        waiting = TaskQueue(tasks, len(self._actors), self._suspects)
        asked: dict[Any, tuple[int, ShardTask | None]] = {}
        for number, actor in enumerate(self._actors):  # including those that wait for resources
            asked[actor.ready.remote(self._job)] = number, None
        news = _News(self._ray, self._board, on_seen)
        while waiting or any(task for _, task in asked.values()):
            if not asked:
                raise UserError(
                    f"ray: every worker exited {IN_A_ROW} times in a row; see the Ray logs"
                )
            done = news.wait(list(asked), WARN_AFTER)
            if done is None:
                if not any(task for _, task in asked.values()):
                    log.warning(
                        "ray: no resources for a worker yet; %d shards are waiting", len(waiting)
                    )
                continue
            number, task = asked.pop(done)
            try:
                answer = self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                self._placed.discard(number)
                if task is not None:
                    also = waiting.died(number, task)
                    yield Reply(task, FAILED, message=f"its worker exited: {_about(error)}{also}")
                if self._deaths.died(number, len(self._actors)):
                    self._actors[number] = self._make()
                    asked[self._actors[number].ready.remote(self._job)] = number, None
                continue
            self._placed.add(number)
            if answer != READY:
                self._deaths.answered(number)
                yield answer
            if waiting:
                task = waiting.take(number)
                following = waiting.reserve(number)
                reference = self._actors[number].run.remote(self._job, task, following, self._board)
                asked[reference] = number, task

    def close(self) -> None:
        for actor in [*self._actors, self._board]:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._actors = []


class _News:
    """Waits for answers, and meanwhile passes on the progress reports of the board.

    If the board dies with its node, only the progress reports are lost.
    """

    def __init__(self, ray: Any, board: Any, on_seen: OnSeen):
        self._ray, self._board, self._on_seen = ray, board, on_seen
        self._asked: Any = board.news.remote()

    def wait(self, references: list[Any], timeout: float) -> Any:
        """Return the first reference that has a result; None after `timeout` seconds."""
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
    """Connect to Ray. Return the ray module, and whether Ray was started on this machine for it.

    Raises UserError if Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'capmix[ray]'") from error
    if ray.is_initialized():
        return ray, False
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry without consent
    # Anyone who can reach Ray's ports can run code. Ray offers no stricter setting: on Linux it
    # still listens on the machine's other addresses (docs/security.md).
    about: Any = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(place, log_to_driver=False, logging_level=logging.WARNING,
                 **about if place == "local" else {})  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"ray: cannot connect to {place}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray replaces our handler with its own, which aborts with a stack trace: restore ours.
        signal.signal(signal.SIGTERM, ours)
    return ray, place == "local"


def resources(ray: Any, needs_gpu: bool, settings: EngineSettings) -> tuple[float, float, int]:
    """Return GPUs and CPUs per actor, and how many actors fit in the cluster as it is now."""
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
    """Create a board on this node, or on another one if this node cannot run actors."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Board).remote()


def _about(error: Exception) -> str:
    """Shorten an error of Ray to its first line (what died) and its last line (why)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
