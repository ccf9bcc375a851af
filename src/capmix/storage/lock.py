"""One process at a time in a folder of a local disk, or with a file."""

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
LOOKED_EVERY = 0.02  # seconds
TOLD_AFTER = 10.0
LOCK = ".lock"  # in a folder, where a folder itself cannot be locked


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Within the block no other process, or thread, is in a block of the same folder.

    Where the file system has no locks there is none. The folder is made where it is missing.
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
            if is_held:  # a forked process may have the handle open still
                _unlock(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> None:
    """Lock an open file, until it is closed. Raises BlockingIOError where another process has, and
    OSError where the file system has no locks."""
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
    started, is_told = time.monotonic(), False
    while True:
        try:
            try_lock(handle)
        except BlockingIOError:
            if not is_told and time.monotonic() - started > TOLD_AFTER:
                log.warning("waiting for another process that writes to %s", folder)
                is_told = True
            time.sleep(LOOKED_EVERY)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False
        else:
            return True
