"""Do the CPU's part of the work ahead, in threads, so that the model does not wait for it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

BATCHES_AHEAD = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    items: Iterable[Item], work: Callable[[Item], Result], workers: int, ahead: int
) -> Iterator[tuple[Item, "Future[Result]"]]:
    """Each item with the finished future of `work(item)`, in order.

    At most `ahead` items are held; an exception of `work` comes out of the future's result().
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    stream = iter(items)
    threads = ThreadPoolExecutor(workers)
    try:
        for item in islice(stream, ahead):
            waiting.append((item, threads.submit(work, item)))
        while waiting:
            item, future = waiting.popleft()
            future.exception()  # waits
            for following in islice(stream, 1):
                waiting.append((following, threads.submit(work, following)))
            yield item, future
    finally:
        # Whoever stops early, as with Ctrl-C, does not wait for a request of two minutes.
        threads.shutdown(wait=False, cancel_futures=True)
