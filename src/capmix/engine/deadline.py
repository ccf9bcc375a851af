"""End what takes too long: a model that hangs would otherwise hold a run for ever."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from capmix.errors import INTERNAL_ERROR

log = logging.getLogger(__name__)

LOOKED_AT_EVERY = 0.5  # seconds


class TimedOutError(Exception):
    """The block took longer than its deadline."""


class Deadline:
    """Blocks of code that may take `seconds` each.

    Python code is interrupted, and whatever returns to it. What never does, a kernel that hangs on
    a GPU, cannot be: after twice the time the process itself is ended (exit code 70), and says
    where it stood. Its shard is then given to another worker where there are several. In threads
    other than the main one, and on Windows, only the latter works.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._ends_at: float | None = None
        self._watch: threading.Thread | None = None

    @contextmanager
    def block(self) -> Iterator[None]:
        """Raise TimedOutError in a block that takes too long."""
        is_main = threading.current_thread() is threading.main_thread()
        can_interrupt = is_main and hasattr(signal, "setitimer")
        if self._watch is None:  # one thread for all blocks: to start one takes milliseconds
            self._watch = threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True)
            self._watch.start()
        self._ends_at = time.monotonic() + 2 * self.seconds
        before = signal.signal(signal.SIGALRM, _raise) if can_interrupt else None
        try:
            if can_interrupt:
                signal.setitimer(signal.ITIMER_REAL, self.seconds)
            yield
        finally:
            if can_interrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            self._ends_at = None

    def end_if_over(self) -> None:
        """End the process if a block takes twice its time."""
        ends_at = self._ends_at
        if ends_at is None or time.monotonic() < ends_at:
            return
        log.error("watchdog: no progress for %g s, stack trace follows", 2 * self.seconds)
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        os._exit(INTERNAL_ERROR)


def _watch(deadline: "weakref.ref[Deadline]") -> None:
    while (known := deadline()) is not None:
        known.end_if_over()
        wait = min(LOOKED_AT_EVERY, known.seconds)
        del known
        time.sleep(wait)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise TimedOutError
