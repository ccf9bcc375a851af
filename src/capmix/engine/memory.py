"""Bound the memory that threads hold together, whatever their number."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class WeightedSemaphore:
    """Lets threads hold `capacity` units together; who would exceed that waits.

    A request for more than the capacity waits until it is alone.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._free = capacity
        self._changed = threading.Condition()

    @contextmanager
    def held(self, units: int) -> Iterator[None]:
        """Hold `units`, at least 0, within the block."""
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
    """Give freed memory back to the system, on Linux with glibc; elsewhere nothing.

    glibc frees into an arena of the thread, where other threads cannot use it.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
