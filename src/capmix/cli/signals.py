"""Ctrl-C and SIGTERM end a command within seconds and leave nothing half-written.

Both raise KeyboardInterrupt where Python code runs, so that temporary files are removed. A model
that computes in C hears nothing of it; after GRACE seconds the process ends all the same, and what
it left is swept away by the next run.
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

GRACE = 7.0  # seconds
CODE = 130
RESUME = "capmix: interrupted; rerun the same command to resume"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within the block SIGTERM is as Ctrl-C, and neither waits for what does not listen."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    before = signal.signal(signal.SIGTERM, _interrupt)
    # The interpreter writes a signal's number there at once, whatever the main thread does.
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
    """A forked process, a data loader's for instance, is ended by its parent and tells nobody."""
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGTERM) is _interrupt:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would break the cleaning up
    raise KeyboardInterrupt


def _watch(signals: socket.socket, is_over: threading.Event) -> None:
    deadline = None
    while not is_over.wait(0.1):
        with contextlib.suppress(BlockingIOError):
            if deadline is None and {signal.SIGINT, signal.SIGTERM} & set(signals.recv(64)):
                deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            say(f"\n{RESUME}")
            end_now(CODE)


def end_now(code: int) -> NoReturn:
    """End the process without waiting for threads, whose requests may take minutes."""
    with contextlib.suppress(Exception):
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
