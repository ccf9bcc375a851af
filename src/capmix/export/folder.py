"""Write files atomically into a folder that may hold the user's own files, without replacing them.

Each folder on the path is opened relative to its parent, so symbolic links are never followed.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from capmix.errors import UserError
from capmix.pool.local import HAS_DIR_FD
from capmix.storage.temporary import NAME, clock_of, is_abandoned, temporary_name

Put = Literal["written", "same", "kept", "linked"]
# Windows lacks these three flags and directory descriptors; TargetFolder raises there.
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
INSIDE = FOLDER | NOFOLLOW
FILE = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW
IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # FAT, some network drives
Other = Literal[False]  # not a regular file, or larger than expected
Make = Callable[[int, str], None]  # creates a file, given its folder's descriptor and its name


class TargetFolder:
    """A local folder to write into.

    With `overwrite`, existing files are replaced, but never the targets of links. Raises UserError
    on systems without directory descriptors (`dir_fd`).
    """

    def __init__(self, root: str, overwrite: bool = False):
        if not HAS_DIR_FD:
            raise UserError(
                "formats of image files and --sidecars require Linux or macOS; use --format jsonl, "
                "webdataset or parquet"
            )
        self.root, self.overwrite = root, overwrite

    def put(
        self,
        name: str,
        data: bytes,
        make: Make | None = None,
        about_to_write: Callable[[], None] = lambda: None,
        ignore_last_breaks: bool = False,
    ) -> Put:
        """Write a file under a temporary name and move it into place.

        Returns `written`; `same` if it exists already with these bytes; `kept` if another file has
        the name; `linked` if a link or a file has the name of a folder on the path. `make` replaces
        the default writer. `about_to_write` is called before writing, if nothing is in the way.
        With `ignore_last_breaks`, trailing line breaks are ignored in the comparison.
        Raises OSError.
        """
        *folders, last = name.split("/")
        folder = self._open(folders, create=True)
        if folder is None:
            return "linked"
        try:
            found = _read(folder, last, len(data))
            if found is not None and _is_same(found, data, ignore_last_breaks):
                return "same"
            if found is not None and not self.overwrite:
                return "kept"
            about_to_write()
            return _place(folder, last, data, make or _writer(data), found is not None)
        finally:
            os.close(folder)

    def sweep(self, folder: str) -> None:
        """Remove temporary files of killed processes from a folder (not from subfolders).

        Raises OSError.
        """
        try:
            opened = self._open([one for one in folder.split("/") if one])
        except FileNotFoundError:
            return
        if opened is None:
            return
        try:
            left = [name for name in os.listdir(opened) if NAME.fullmatch(name)]
            now = clock_of(self.root) if left else 0.0
            for name in left:
                if is_abandoned(f"{self.root}/{folder}/{name}", now):
                    with suppress(OSError):
                        os.unlink(name, dir_fd=opened)
        finally:
            os.close(opened)

    def would_keep(self, name: str, data: bytes) -> bool:
        """Return whether `put` would keep an existing file, judged by the current state.

        Writes nothing. Raises OSError.
        """
        *folders, last = name.split("/")
        try:
            folder = self._open(folders)
        except FileNotFoundError:
            return False
        if folder is None:
            return True
        try:
            found = _read(folder, last, len(data))
            if found is None or found == data:
                return False
            return not self.overwrite or _is_folder(folder, last)
        finally:
            os.close(folder)

    def _open(self, folders: list[str], create: bool = False) -> int | None:
        """Return the descriptor of a folder, or None if a link or a file is in the way.

        Raises FileNotFoundError if it is missing and `create` is false.
        """
        folder = os.open(self.root, FOLDER)
        try:
            for name in folders:
                if create:
                    with suppress(FileExistsError):
                        os.mkdir(name, dir_fd=folder)
                inner = os.open(name, INSIDE, dir_fd=folder)
                os.close(folder)
                folder = inner
        except OSError as error:
            os.close(folder)
            if error.errno in IN_THE_WAY:
                return None
            raise
        return folder


def _is_folder(folder: int, name: str) -> bool:
    with suppress(FileNotFoundError):
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _is_same(found: bytes | Other, data: bytes, ignore_last_breaks: bool) -> bool:
    if ignore_last_breaks and isinstance(found, bytes):
        return found.rstrip(b"\r\n") == data.rstrip(b"\r\n")
    return found == data


def hard_link(source: str, data: bytes) -> Make:
    """Return a Make that hard-links a file, or copies `data` if the file has changed since."""

    def make(folder: int, name: str) -> None:
        os.link(os.path.realpath(source), name, dst_dir_fd=folder)
        if _read(folder, name, len(data)) != data:  # the source has been replaced since
            os.unlink(name, dir_fd=folder)
            _writer(data)(folder, name)

    return make


def _writer(data: bytes) -> Make:
    def make(folder: int, name: str) -> None:
        with os.fdopen(os.open(name, NEW, 0o666, dir_fd=folder), "wb") as stream:
            stream.write(data)

    return make


def _place(folder: int, last: str, data: bytes, make: Make, replaces: bool) -> Put:
    temporary = temporary_name()
    try:
        make(folder, temporary)
        if replaces or not _linked(folder, temporary, last):
            os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
    except (FileExistsError, IsADirectoryError):
        return "kept"
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
    return "written"


def _linked(folder: int, temporary: str, last: str) -> bool:
    """Link a file to its final name; return False if the file system has no hard links.

    A rename would replace a file that another process has created meanwhile.
    """
    try:
        os.link(temporary, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def _read(folder: int, name: str, size: int) -> bytes | Other | None:
    """Return the bytes of a file of up to `size` + 64 bytes.

    None if it does not exist; False if it is larger or not a regular file.
    """
    try:
        file = os.open(name, FILE, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (*IN_THE_WAY, errno.ENXIO, errno.ENODEV):
            return False
        raise
    with os.fdopen(file, "rb") as stream:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > size + 64:
            return False
        return stream.read(size + 65)
