"""Put files into a folder that others use too: none of theirs is replaced, and none is left half.

Every folder on the way is opened by its own name, so that a link among them leads nowhere.
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
# Windows has none of these three, and no open folders: what needs them is refused there.
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
INSIDE = FOLDER | NOFOLLOW
FILE = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW
IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # FAT, some networks
Other = Literal[False]  # something that is not the file
Make = Callable[[int, str], None]  # of a new file, by the descriptor of its folder


class TargetFolder:
    """A local folder. With `overwrite`, files of others are replaced; the files that links of
    whatever kind lead to never are. Raises UserError on systems that open no file from an open
    folder."""

    def __init__(self, root: str, overwrite: bool = False):
        if not HAS_DIR_FD:
            raise UserError(
                "export: image files and --sidecars need Linux or macOS; name --format jsonl, "
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
        """Put a file in place, by a new name first.

        `written`, or `same` where it is there already, or `kept` where another one is, or `linked`
        where a link or a file has the name of a folder on the way. `make` writes the data in
        another way; `about_to_write` is called where nothing is in the way.
        With `ignore_last_breaks`, a file that differs in line breaks at its end is the same.
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
        """Remove what killed processes left half-written directly in a folder. Raises OSError."""
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
        """Whether something is in the way of a file, as far as can be seen now; writes nothing.
        Raises OSError."""
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
        """The descriptor of a folder; None where something else is in the way. Raises
        FileNotFoundError where it is missing, unless it is to be made."""
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
    """Makes a hard link to a file, or a copy of `data` where that is not what the file holds."""

    def make(folder: int, name: str) -> None:
        os.link(os.path.realpath(source), name, dst_dir_fd=folder)
        if _read(folder, name, len(data)) != data:  # replaced since it was read
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
    """Give a file its name; False where the file system has no hard links. A rename would replace
    a file that appears meanwhile."""
    try:
        os.link(temporary, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def _read(folder: int, name: str, size: int) -> bytes | Other | None:
    """The bytes of a file of about `size`; None where there is none, False for what is longer or no
    regular file."""
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
