"""Temporary files and folders: their owner, and whether the owner is still running.

The name of a temporary file identifies the process that created it: a digest of the machine's boot
ID and PID namespace, then the process number. If the owner is in the same namespace, its process
is looked up. Otherwise (another container, or another machine that shares the file system) the
modification time decides, which the owner renews while it uses the file.
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
OLD_NAME = re.compile(r"\.(.+)\.(\d+)\.[0-9a-f]{8}\.tmp")  # capmix 0.1: starts with the host name
RENEWED_EVERY = 60.0  # seconds
SYNCHRONIZE, WAIT_TIMEOUT, ERROR_ACCESS_DENIED = 0x100000, 258, 5  # Windows API
ABANDONED_AFTER = 1800.0  # seconds without renewal; long, because a process can be suspended


def temporary_name() -> str:
    """Return a new unique name that identifies this process as the owner."""
    return f".{process_namespace()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"


def is_temporary(name: str) -> bool:
    """Return whether a file or folder name has the form of temporary_name, or of capmix 0.1."""
    return bool(OLD_NAME.fullmatch(name))


def is_abandoned(path: str, now: float) -> bool:
    """Return whether the process that created a temporary file or folder ended without removing it.

    `now` is the current time in seconds on the clock of the file system of `path`; see clock_of.
    """
    name = path.rpartition("/")[2]
    ours = NAME.fullmatch(name)
    if ours and ours[1] == process_namespace():  # works for suspended processes and machines too
        return not is_running(int(ours[2]))
    try:
        return is_temporary(name) and now - os.stat(path).st_mtime > ABANDONED_AFTER
    except OSError:
        return False


def remove_temporary(path: str) -> None:
    """Remove a file, or a folder with its content. Errors are ignored."""
    with suppress(OSError):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.remove(path)


def clock_of(folder: str) -> float:
    """Return the time in seconds on the clock of a folder's file system.

    The clock of a file server can differ from the clock of this machine.
    """
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
    """Return whether there is a process with this number in the current namespace."""
    if sys.platform == "win32":  # os.kill would terminate the process
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
    """Updates the modification times of paths in use, from a thread that runs only when needed."""

    def __init__(self, every: float = RENEWED_EVERY):
        self._every = every
        self._paths: set[str] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextmanager
    def of(self, path: str) -> Iterator[None]:
        """Renew the path within the block."""
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
    """Return 12 hex digits that identify the boot and PID namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        place = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        place = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(place.encode()).hexdigest()[:12]
