"""One process at a time in a folder of a local disk."""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)

NO_LOCKS = (
    errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP,
)  # fmt: skip
LOOKED_EVERY = 0.02  # seconds
TOLD_AFTER = 10.0


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[None]:
    """Within the block no other process, or thread, is in a block of the same folder.

    Where the file system has no locks there is none. The folder is made where it is missing.
    """
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        is_held = _taken(handle, folder)
        try:
            yield
        finally:
            if is_held:  # a forked process may have the handle open still
                fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _taken(handle: int, folder: str) -> bool:
    started, is_told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
