"""A function of each item, in order: in threads, in processes, or in actors of a Ray cluster.

For passes over tables, whose results are small: what a function returns travels.
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
RETRIES = 3  # of an item whose actor or node dies
IN_FLIGHT = 2  # items of a process or actor


class Mapper(Protocol):
    """Where functions run."""

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        """Each item with what `work` returns for it, in order; a few items are held. Raises what
        `work` raises."""
        ...


@contextmanager
def mapper(settings: EngineSettings, is_long: bool = False) -> Iterator[Mapper]:
    """A mapper of the engine that is asked for; its actors end with the block.

    Work that `is_long` is worth the second that processes take to start: threads of Python seldom
    work side by side. Its functions can be pickled. Raises UserError where Ray is not installed or
    not reached.
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
    """Some items at a time, in threads of this process."""

    def __init__(self, workers: int):
        self._workers = workers

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        for item, finished in prefetched(items, work, self._workers, self._workers + 1):
            yield item, finished.result()


class MappedProcesses:
    """The same in processes of this machine, which start with each function."""

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
    """Each item with what `answer` says of what `ask` gave for it; workers are asked in turn, and
    IN_FLIGHT items of each wait."""
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
    """What a process of MappedProcesses does with each item."""
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
            f"a worker process ended ({process.end()}). Where it ran out of memory, ask for fewer "
            "--workers; else run again"
        )
    return finished.result()


class Actors:
    """The same in actors of a Ray cluster. One that dies is started again, wherever there is room,
    and its items are done again."""

    def __init__(self, settings: EngineSettings):
        self._ray, _ = connected(settings.address)
        _, cpus, room = resources(self._ray, False, settings)
        remote = self._ray.remote(num_cpus=cpus, max_restarts=-1, max_task_retries=RETRIES)(_Actor)
        self._actors: list[Any] = [remote.remote() for _ in range(settings.workers or max(1, room))]

    def __call__(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result]]:
        function = [self._ray.put(work)]  # in a list: it is fetched once by each actor
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
    """Keeps the function that it was last asked for."""

    def __init__(self) -> None:
        self._known: tuple[Any, Callable[[Any], Any]] | None = None

    def run(self, function: list[Any], item: Any) -> Finished[Any]:
        import ray

        if self._known is None or self._known[0] != function[0]:
            self._known = function[0], ray.get(function[0])
        return _finished(self._known[1], item)
