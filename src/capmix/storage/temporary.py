"""Files and folders that a process needs for a while: whose they are, and whether it still runs.

Their names say which process made them: a digest of the machine's boot and of the namespace of its
process numbers, then the number. A process of the same namespace can be asked for; for all others,
such as those of another container or of another machine on the same file system, the time of last
change counts, which their process renews while it uses them.
"""

import hashlib
import os
import re
import shutil
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

NAME = re.compile(r"\.([0-9a-f]{12})\.(\d+)\.[0-9a-f]{8}\.tmp")
OLD_NAME = re.compile(r"\.(.+)\.(\d+)\.[0-9a-f]{8}\.tmp")  # with the host's name, of capmix 0.1
RENEWED_EVERY = 60.0  # seconds
SYNCHRONIZE, WAIT_TIMEOUT, ERROR_ACCESS_DENIED = 0x100000, 258, 5  # of Windows
ABANDONED_AFTER = 1800.0  # seconds without a change; a process can be stopped for a while


def temporary_name() -> str:
    """A new name that says whose it is."""
    return f".{process_namespace()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file's or folder's name is one of temporary_name."""
    return bool(OLD_NAME.fullmatch(name))


def is_abandoned(path: str, now: float) -> bool:
    """Whether the process that made a temporary file or folder has ended without removing it.

    `now` is the time in seconds as the file system of `path` tells it (see clock_of).
    """
    name = path.rpartition("/")[2]
    ours = NAME.fullmatch(name)
    if ours and ours[1] == process_namespace():  # a process may be stopped, or its machine asleep
        return not is_running(int(ours[2]))
    try:
        return is_temporary(name) and now - os.stat(path).st_mtime > ABANDONED_AFTER
    except OSError:
        return False


def remove_temporary(path: str) -> None:
    """Remove a file or a folder with all that is in it; what cannot be removed stays."""
    with suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.remove(path)


def clock_of(folder: str) -> float:
    """The time in seconds as a folder's file system tells it: another machine may be ahead."""
    path = f"{folder}/{temporary_name()}"
    try:
        with open(path, "wb"):
            return os.stat(path).st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            os.remove(path)


def is_running(process: int) -> bool:
    """Whether a process of this namespace has that number."""
    if sys.platform == "win32":  # where os.kill ends processes
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _runs_on_windows(process: int) -> bool:
    import ctypes

    kernel: Any = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(SYNCHRONIZE, False, process)
    if not handle:
        return bool(kernel.GetLastError() == ERROR_ACCESS_DENIED)
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == WAIT_TIMEOUT)
    finally:
        kernel.CloseHandle(handle)


class Renewal:
    """Renews the time of change of files and folders in use, from a thread that ends with them."""

    def __init__(self, every: float = RENEWED_EVERY):
        self._every = every
        self._paths: set[str] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def of(self, path: str) -> Iterator[None]:
        """Within the block the path is renewed."""
        self.add(path)
        try:
            yield
        finally:
            self.remove(path)

    def add(self, path: str) -> None:
        with self._changed:
            self._paths.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, daemon=True)
                self._thread.start()

    def remove(self, path: str) -> None:
        with self._changed:
            self._paths.discard(path)

    def _renew(self) -> None:
        while True:
            time.sleep(self._every)
            with self._changed:
                paths = list(self._paths)
                if not paths:
                    self._thread = None
                    return
            for path in paths:
                with suppress(OSError):
                    os.utime(path)


@cache
def process_namespace() -> str:
    """12 hex digits of where process numbers mean what they mean here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        place = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(place.encode()).hexdigest()[:12]
