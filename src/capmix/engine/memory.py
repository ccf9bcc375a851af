"""Limit the memory that all threads together hold, regardless of their number."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WeightedSemaphore:
    """Semaphore that lets threads hold at most `capacity` units in total; further requests wait.

    A request for more than the capacity waits until no other thread holds any units.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._free = capacity
        self._changed = threading.Condition()

    @contextmanager
    def held(self, units: int) -> Iterator[None]:
        """Hold `units` (>= 0) within the block."""
        units = min(units, self._capacity)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= units)
            self._free -= units
        try:
            yield
        finally:
            with self._changed:
                self._free += units
                self._changed.notify_all()


def release_freed() -> None:
    """Return freed memory to the operating system, on Linux with glibc; elsewhere do nothing.

    glibc keeps freed memory in the arena of its thread, where other threads cannot use it.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
