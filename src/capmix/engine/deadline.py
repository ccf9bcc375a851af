"""Time limits for blocks of code: without them, a model that hangs would block a run forever."""

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from capmix.errors import INTERNAL_ERROR

log = logging.getLogger(__name__)

CHECK_INTERVAL = 0.5  # seconds
NOTED_WITHIN = 10.0


class TimedOutError(Exception):
    """The block took longer than its deadline."""


class Deadline:
    """Time limit of `seconds` for blocks of code.

    Python code, and native code that returns to Python, is interrupted. Code that never returns,
    such as a GPU kernel that hangs, cannot be interrupted: after twice the time the process prints
    a stack trace and exits with code 70. If there are several workers, another one processes its
    shard. In threads other than the main thread, and on Windows, only the exit is available.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._ends_at: float | None = None
        self._before_exit: Callable[[], None] | None = None
        self._watch: threading.Thread | None = None

    @contextmanager
    def block(self, before_exit: Callable[[], None] | None = None) -> Iterator[None]:
        """Raise TimedOutError in the block if it takes longer than `seconds`.

        `before_exit` is called in another thread before the process exits, and gets NOTED_WITHIN
        seconds.
        """
        is_main = threading.current_thread() is threading.main_thread()
        can_interrupt = is_main and hasattr(signal, "setitimer")
        if self._watch is None:  # one thread for all blocks: starting a thread takes milliseconds
            self._watch = threading.Thread(target=_watch, args=(weakref.ref(self),), daemon=True)
            self._watch.start()
        self._before_exit = before_exit
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
        """Exit the process if the current block has taken more than twice its time limit."""
        ends_at = self._ends_at
        if ends_at is None or time.monotonic() < ends_at:
            return
        log.error("watchdog: no progress for %g s, stack trace follows", 2 * self.seconds)
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        if self._before_exit is not None:
            thread = threading.Thread(target=self._before_exit, daemon=True)
            thread.start()
            thread.join(NOTED_WITHIN)
        os._exit(INTERNAL_ERROR)


def _watch(deadline: "weakref.ref[Deadline]") -> None:
    while (known := deadline()) is not None:
        known.end_if_over()
        wait = min(CHECK_INTERVAL, known.seconds)
        del known
        time.sleep(wait)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise TimedOutError
