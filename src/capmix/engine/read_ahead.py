"""Read and prepare the images of shards ahead of the model, in threads.

The model's thread does no reading, and the next shard is begun while the model still works on the
last batches of the current one and its part is written.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from capmix.engine.prefetch import Finished, all_finished, group_size

Item = TypeVar("Item")
Key = TypeVar("Key")
Result = TypeVar("Result")


def read_ahead(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    workers: int,
    ahead: int,
    start: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Finished[Result]]]:
    """Yield each item with the outcome of `work(item)`, in order. Raises what `items` raises.

    A thread reads the items, and `workers` threads apply `work`, ahead of the caller by at most
    about `ahead` items. Each of the latter calls `start` first, which must not raise.
    """
    return ReadAhead(_only(items), work, workers, ahead, start).of("")


def _only(items: Iterable[Item]) -> Callable[[str], Iterable[Item]]:
    return lambda _: items


class ReadAhead(Generic[Key, Item, Result]):
    """Reads the items of shards and works on them, ahead of the caller and across shards.

    `read` returns the items of a shard, in a thread of its own; `workers` threads apply `work`. At
    most about `ahead` items are held, those of the following shard included. Each of the threads
    that work calls `start` first, which must not raise. Shards for which `may_follow` is false are
    not read ahead.
    """

    def __init__(
        self,
        read: Callable[[Key], Iterable[Item]],
        work: Callable[[Item], Result],
        workers: int,
        ahead: int,
        start: Callable[[], None] = lambda: None,
        may_follow: Callable[[Key], bool] = lambda _: True,
    ):
        self._may_follow = may_follow
        self._new_stream = partial(_Stream, read, work, workers, ahead, start)
        self._stream: _Stream[Key, Item, Result] | None = None
        self._following: Key | None = None

    def follow(self, shard: Key | None) -> None:
        """Announce the shard that probably comes after the current one; None if none does.

        It is read once the current one has been read completely, but not before a first shard was
        asked for.
        """
        shard = shard if shard is not None and self._may_follow(shard) else None
        self._following, stream = shard, self._stream
        if stream is None:
            return
        if len(stream.shards) > 1:  # an announced shard was never asked for
            self.close()
        elif shard is not None and shard not in stream.shards:
            stream.add(shard)

    def of(self, shard: Key) -> Iterator[tuple[Item, Finished[Result]]]:
        """Yield each item of a shard with the outcome of `work`, in order. Raises what `read`
        raises. What was read of another shard is dropped."""
        stream = self._stream
        if stream is None or stream.shards[0] != shard:
            self.close()
            stream = self._new_stream()
            stream.add(shard)
            if self._following is not None and self._following != shard:
                stream.add(self._following)
            self._stream = stream
        is_whole = False
        try:
            yield from stream.first()
            is_whole = True
        finally:
            if not is_whole or not stream.shards:
                stream.stop()
                if self._stream is stream:
                    self._stream = None

    def close(self) -> None:
        """Drop what has been read. Does not wait for the threads."""
        if self._stream is not None:
            self._stream.stop()
            self._stream = None


@dataclass(frozen=True)
class _End:
    """The end of a shard, and the error that ended it early."""

    error: BaseException | None


class _Stream(Generic[Key, Item, Result]):
    """The items of `shards`, one after the other; the first is the one to take items from."""

    def __init__(
        self,
        read: Callable[[Key], Iterable[Item]],
        work: Callable[[Item], Result],
        workers: int,
        ahead: int,
        start: Callable[[], None],
    ):
        self._read, self._work = read, work
        self._size = group_size(workers, ahead)
        self._free = threading.Semaphore(max(1, ahead // self._size))  # groups
        self._groups: SimpleQueue[tuple[list[Item], Future[list[Finished[Result]]]] | _End]
        self._groups = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, initializer=start)
        self._lock = threading.Lock()
        self._unread: deque[Key] = deque()
        self._is_reading = self._is_stopped = False
        self.shards: deque[Key] = deque()

    def add(self, shard: Key) -> None:
        """Read `shard` after those that were added before."""
        self.shards.append(shard)
        with self._lock:
            self._unread.append(shard)
            if self._is_reading:
                return
            self._is_reading = True
        # A daemon, because a read that never returns must not keep the process from exiting.
        threading.Thread(target=self._read_all, name="capmix-read", daemon=True).start()

    def first(self) -> Iterator[tuple[Item, Finished[Result]]]:
        """Yield the items of the first shard, and remove it from `shards` at its end."""
        while not isinstance(entry := self._groups.get(), _End):
            group, future = entry
            done = future.result()
            self._free.release()
            yield from zip(group, done, strict=True)
        self.shards.popleft()
        if entry.error is not None:
            raise entry.error

    def stop(self) -> None:
        """Stop the threads without waiting for them: a caller that stops early, for example on
        Ctrl-C, must not wait for slow requests."""
        self._is_stopped = True
        self._free.release()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read_all(self) -> None:
        while True:
            with self._lock:
                if not self._unread or self._is_stopped:
                    self._is_reading = False
                    return
                shard = self._unread.popleft()
            self._groups.put(_End(self._read_one(shard)))

    def _read_one(self, shard: Key) -> BaseException | None:
        """Submit the items of a shard. Return the error that ended it, if any."""
        close = None
        try:
            items = iter(self._read(shard))
            close = getattr(items, "close", None)  # of a generator, which holds an open file
            while self._free.acquire() and not self._is_stopped:
                group = list(islice(items, self._size))
                if not group:
                    self._free.release()
                    break
                future = self._threads.submit(all_finished, self._work, group)
                self._groups.put((group, future))
        except BaseException as error:  # raised again where the items are taken
            return error
        finally:
            if close is not None:
                close()
        return None
