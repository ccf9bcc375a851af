"""Do the CPU part of the work ahead of the caller, in threads, so that it does not wait.

The items are taken in the caller's thread; read_ahead.py also reads them in a thread of its own.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from capmix.engine.batches import batched

BATCHES_AHEAD = 3
LOCAL_WORKERS = "CAPMIX_LOCAL_WORKERS"  # environment variable: workers that share these cores
LARGEST_GROUP = 8  # items per task of a thread: submitting a task costs about 40 us
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """Result of the work on one item: a value or an exception."""

    value: Result | None
    error: Exception | None = None

    def result(self) -> Result:
        """Return the value, or raise the exception."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def prefetched(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    workers: int,
    ahead: int,
    start: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Finished[Result]]]:
    """Yield each item with the outcome of `work(item)`, in order.

    `workers` threads run ahead of the caller by at most about `ahead` items. Each calls `start`
    first, which must not raise.
    """
    size = group_size(workers, ahead)
    groups = batched(items, size)
    waiting: deque[tuple[list[Item], Future[list[Finished[Result]]]]] = deque()
    threads = ThreadPoolExecutor(workers, initializer=start)

    def submit(count: int) -> None:
        for group in islice(groups, count):
            waiting.append((group, threads.submit(all_finished, work, group)))

    try:
        submit(ahead // size)
        while waiting:
            group, future = waiting.popleft()
            done = future.result()
            submit(1)
            yield from zip(group, done, strict=True)
    finally:
        # A caller that stops early, for example on Ctrl-C, must not wait for slow requests.
        threads.shutdown(wait=False, cancel_futures=True)


def group_size(workers: int, ahead: int) -> int:
    """Return the number of items per task: small enough for two tasks per thread in each batch."""
    return max(1, min(LARGEST_GROUP, ahead // (2 * BATCHES_AHEAD * workers)))


def all_finished(work: Callable[[Item], Result], group: list[Item]) -> list[Finished[Result]]:
    """Return the outcome of `work` for each item."""
    return [_finished(work, item) for item in group]


def _finished(work: Callable[[Item], Result], item: Item) -> Finished[Result]:
    try:
        return Finished(work(item))
    except Exception as error:
        return Finished(None, error)
