"""Apply a function to items in order: in threads, in processes, or in actors of a Ray cluster.

Results are sent back to the caller, so this is for functions with small results, such as passes
over tables.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from capmix.engine.local import cores
from capmix.engine.prefetch import Finished, prefetched
from capmix.engine.process import Process
from capmix.engine.ray import connected, resources
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 3  # per item, if its actor or node dies
IN_FLIGHT = 2  # items per process or actor


class Mapper(Protocol):
    """Applies functions to items, somewhere."""

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Yield each item with the result of `work` for it, in order.

        A few items are held in memory at a time. Raises what `work` raises.
        """
        ...


@contextmanager
def mapper(settings: EngineSettings, is_long: bool = False) -> Iterator[Mapper]:
    """Yield a mapper for the configured engine; its actors are stopped at the end of the block.

    With `is_long`, the local engine uses processes, which take about a second to start but run in
    parallel, unlike most threads in Python. Functions must then be picklable. Raises UserError if
    Ray is not installed or cannot be reached.
    """
    if settings.name == "local":
        workers = settings.workers or cores()
        yield MappedProcesses(workers) if is_long and workers > 1 else Threads(workers)
        return
    actors = Actors(settings)
    try:
        yield actors
    finally:
        actors.close()


class Threads:
    """Mapper that runs functions in threads of this process."""

    def __init__(self, workers: int):
        self._workers = workers

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        for item, finished in prefetched(items, work, self._workers, self._workers + 1):
            yield item, finished.result()


class MappedProcesses:
    """Mapper that runs functions in processes of this machine, started for each function."""

    def __init__(self, workers: int):
        self._workers = workers

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        processes = [Process(work, answer_items, {}, []) for _ in range(self._workers)]

        def ask(process: Process, item: Item) -> Process:
            process.send(item)
            return process

        try:
            yield from _in_order(items, processes, ask, _answer)
        finally:
            for process in processes:
                process.connection.close()
            for process in processes:
                process.end()


def _in_order(
    items: Iterable[Item],
    workers: Sequence[Any],
    ask: Callable[[Any, Item], Any],
    answer: Callable[[Any], Any],
) -> Iterator[tuple[Item, Any]]:
    """Yield each item with its result, in order.

    `ask` submits an item to a worker and returns a handle; `answer` waits for the handle's result.
    Items go to the workers in turn, with up to IN_FLIGHT items per worker in flight.
    """
    waiting: deque[tuple[Item, Any]] = deque()
    for number, item in enumerate(items):
        waiting.append((item, ask(workers[number % len(workers)], item)))
        if len(waiting) >= IN_FLIGHT * len(workers):
            first, asked = waiting.popleft()
            yield first, answer(asked)
    for first, asked in waiting:
        yield first, answer(asked)


def answer_items(
    work: Callable[[Any], Any], _send: Callable[[Any], None]
) -> Callable[[Any], Finished[Any]]:
    """Return the function that a process of MappedProcesses applies to each item."""
    return partial(_finished, work)


def _finished(work: Callable[[Any], Any], item: Any) -> Finished[Any]:
    try:
        return Finished(work(item))
    except (UserError, OSError) as error:
        return Finished(None, error)


def _answer(process: Process) -> Any:
    finished: Finished[Any] | None = process.receive()
    if finished is None:
        raise UserError(
            f"a worker process exited ({process.end()}). If it ran out of memory, lower --workers; "
            "otherwise rerun the same command"
        )
    return finished.result()


class Actors:
    """Mapper that runs functions in actors of a Ray cluster.

    Ray restarts an actor that dies, on any node with free resources, and retries its items.
    """

    def __init__(self, settings: EngineSettings):
        self._ray, _ = connected(settings.address)
        _, cpus, room = resources(self._ray, False, settings)
        remote = self._ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=RETRIES)(_Actor)
        self._actors: list[Any] = [remote.remote() for _ in range(settings.workers or max(1, room))]

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        function = [self._ray.put(work)]  # in a list, Ray passes the reference: see _Actor
        return _in_order(
            items, self._actors, lambda actor, item: actor.run.remote(function, item), self._answer
        )

    def _answer(self, reference: Any) -> Any:
        try:
            finished: Finished[Any] = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(f"ray: a worker failed: {' '.join(lines[:1] + lines[-1:])}") from error
        return finished.result()

    def close(self) -> None:
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor)


class _Actor:
    """Ray actor that fetches a function once and caches it until it gets another one."""

    def __init__(self) -> None:
        self._known: tuple[Any, Callable[[Any], Any]] | None = None

    def run(self, function: list[Any], item: Any) -> Finished[Any]:
        import ray

        if self._known is None or self._known[0] != function[0]:
            self._known = function[0], ray.get(function[0])
        return _finished(self._known[1], item)
