"""End what takes too long: a model that hangs would otherwise hold a run for ever."""

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimedOutError(Exception):
    """The block took longer than its deadline."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimedOutError in a block that takes over `seconds`.

    Python code is interrupted, and whatever returns to it. What never does, a kernel that hangs on
    a GPU, cannot be: after twice the time the process itself is ended (exit code 1), with a
    traceback of where it stood. Its shard is then given to another worker where there are several.
    In threads other than the main one only the latter works.
    """
    can_interrupt = threading.current_thread() is threading.main_thread()
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    before = None
    try:
        if can_interrupt:
            before = signal.signal(signal.SIGALRM, _raise)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        if can_interrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise TimedOutError
