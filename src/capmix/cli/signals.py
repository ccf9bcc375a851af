"""Exit within seconds of Ctrl-C or SIGTERM, and leave nothing half-written.

Both signals raise KeyboardInterrupt in Python code, so that temporary files are removed. Native
code, for example a model's kernels, is not interrupted: after GRACE seconds the process exits
anyway, and the next run removes its leftovers.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from capmix.cli.streams import say
from capmix.engine import messages

GRACE = 7.0  # seconds
CODE = 130
RESUME = "capmix: interrupted; rerun the same command to resume"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within the block, handle SIGTERM like Ctrl-C, and exit after GRACE seconds at the latest."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    before = signal.signal(signal.SIGTERM, _interrupt)
    # The interpreter writes the signal's number there at once, even if the main thread is busy.
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
    is_over = threading.Event()
    threading.Thread(target=_watch, args=(ours, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)


def _forget() -> None:
    """Restore the defaults in a forked process, such as a data loader's: its parent ends it."""
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGTERM) is _interrupt:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the cleanup
    raise KeyboardInterrupt


def _watch(signals: socket.socket, is_over: threading.Event) -> None:
    deadline = None
    while not is_over.wait(0.1):
        with contextlib.suppress(BlockingIOError):
            if deadline is None and {signal.SIGINT, signal.SIGTERM} & set(signals.recv(64)):
                deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            if not messages.say_error(RESUME):
                say(f"\n{RESUME}")
            end_now(CODE)


def end_now(code: int) -> NoReturn:
    """Exit without waiting for threads, whose requests may take minutes."""
    with contextlib.suppress(Exception):
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
