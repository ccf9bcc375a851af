"""Locks on a folder of a local disk, and on an open file."""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NO_LOCKS = (
    errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
)  # fmt: skip
CHECK_INTERVAL = 0.02  # seconds
WARN_AFTER = 10.0
LOCK = ".lock"  # file in the folder, for systems where a folder itself cannot be locked


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Hold an exclusive lock on a folder within the block, across processes and threads.

    Creates the folder if it is missing. Does nothing if the file system does not support locks.
    """
    os.makedirs(folder, exist_ok=True)
    if fcntl is None:
        handle = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CREAT)
    else:
        handle = os.open(folder, os.O_RDONLY)
    try:
        is_held = _taken(handle, folder)
        try:
            yield
        finally:
            if is_held:  # closing is not enough: a forked process may still have the handle open
                _unlock(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> None:
    """Lock an open file until it is closed.

    Raises BlockingIOError if another process holds the lock, and OSError if the file system does
    not support locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(handle, 0, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except PermissionError as error:
        raise BlockingIOError(errno.EAGAIN, "locked by another process") from error


def _unlock(handle: int) -> None:
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_UN)
        return
    import msvcrt

    os.lseek(handle, 0, os.SEEK_SET)
    msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]


def _taken(handle: int, folder: str) -> bool:
    started, has_warned = time.monotonic(), False
    while True:
        try:
            try_lock(handle)
        except BlockingIOError:
            if not has_warned and time.monotonic() - started > WARN_AFTER:
                log.warning("waiting for another process that is writing to %s", folder)
                has_warned = True
            time.sleep(CHECK_INTERVAL)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        else:
            return True
