"""Do the CPU part of the work ahead of the model, in threads, so that the model does not wait."""

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

    def finished(item: Item) -> Finished[Result]:
        try:
            return Finished(work(item))
        except Exception as error:
            return Finished(None, error)

    def all_finished(group: list[Item]) -> list[Finished[Result]]:
        return [finished(item) for item in group]

    # Small enough for two groups per thread in each batch.
    size = max(1, min(LARGEST_GROUP, ahead // (2 * BATCHES_AHEAD * workers)))
    groups = batched(items, size)
    waiting: deque[tuple[list[Item], Future[list[Finished[Result]]]]] = deque()
    threads = ThreadPoolExecutor(workers, initializer=start)

    def submit(count: int) -> None:
        for group in islice(groups, count):
            waiting.append((group, threads.submit(all_finished, group)))

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
