"""The files of a pool on a local disk: which are listed, and how one is opened.

A pool that others made may hold links to any file of this machine, and files whose reading never
ends. Only regular files inside the pool's real path are opened, unless links are followed; then
any regular file. What is listed is checked again when it is opened: it may be replaced meanwhile.
"""

import contextlib
import errno
import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

from capmix.pool.ignored import suffix_of
from capmix.storage.filesystem import again, is_left_out

# Windows has none of these, and opens files as text by default.
HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
# A FIFO that nobody writes to would be waited for.
FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
LINKED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)  # what O_NOFOLLOW says of a link, by system
NO_FILE = (errno.ENXIO, errno.ENODEV)  # a socket, a device without a driver
SIDECARS = (".txt", ".json")

LEAVES = "link that leaves the pool"
BROKEN = "broken link"
LINKED_FOLDER = "linked folder"
LISTED_BEFORE = "link to a folder that is listed before"
NOT_UTF8 = "name that is not UTF-8"
PLURALS = {
    LEAVES: "links that leave the pool",
    LINKED_FOLDER: "linked folders",
    LISTED_BEFORE: "links to folders that are listed before",
    NOT_UTF8: "names that are not UTF-8",
}
FOLLOWED = (LEAVES, LINKED_FOLDER)  # what is read where links are followed
KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
NOT_REGULAR = "not a regular file"


class FileTooLargeError(ValueError):
    """A file holds more bytes than are read of its kind."""


@dataclass
class Skipped:
    """Entries of a pool's folders that are not read, by kind, and the name of one."""

    counts: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.example = min(self.example or name, name)

    def __str__(self) -> str:
        """Such as `3 entries skipped (2 FIFOs, 1 socket), such as 'a.jpg'`; "" for none."""
        total = self.counts.total()
        if not total:
            return ""
        kinds = ", ".join(
            f"{count:,} {kind if count == 1 else PLURALS.get(kind, f'{kind}s')}"
            for kind, count in sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        )
        entries = "1 entry" if total == 1 else f"{total:,} entries"
        advice = any(kind in self.counts for kind in FOLLOWED)
        hint = ". Read what links lead to with --follow-links" if advice else ""
        return f"{entries} skipped ({kinds}), such as {self.example!r}{hint}"


@dataclass
class Listing:
    """Size and times of each file that a pool may read, by its path below the pool's folder.

    A .txt or .json file that is skipped is in `files` too: the sample that it belongs to fails
    when it is opened, as it would have another text or uid without it. `others` counts the regular
    files of no suffix that was asked for, by suffix.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    others: Counter[str] = field(default_factory=Counter)


def list_local(root: str, suffixes: tuple[str, ...], follow_links: bool) -> Listing:
    """List the files below a folder whose names end in one of `suffixes`, in any case.

    Hidden files and folders are left out. Each folder is listed once, whatever links lead to it.
    Raises OSError where one cannot be listed, unless it is gone.
    """
    walk = _Walk(root, suffixes, follow_links)
    walk.below("")
    while walk.linked:  # after all folders of the pool itself, so that these keep their names
        walk.below(heapq.heappop(walk.linked))
    files = dict(sorted(walk.found.files.items()))
    return Listing(files, walk.found.skipped, walk.found.others)


def list_named(root: str, names: Iterable[str], follow_links: bool) -> Listing:
    """Files below a folder by their names there, as list_local lists them. Raises OSError where one
    is missing."""
    walk = _Walk(root, ("",), follow_links)
    for name in names:
        walk.add(name, again(partial(os.lstat, f"{root}/{name}")))
    return walk.found


class _Walk:
    """A listing under way; `linked` is a heap of the folders behind links that are to be listed."""

    def __init__(self, root: str, suffixes: tuple[str, ...], follow_links: bool):
        self.root, self.suffixes, self.follow_links = root, suffixes, follow_links
        self.found = Listing()
        self.linked: list[str] = []
        self._listed: set[tuple[int, int]] = set()

    def below(self, start: str) -> None:
        """List a folder and those in it, but not those behind links."""
        folders = [start]
        while folders:
            folder = folders.pop()
            path = f"{self.root}/{folder}"
            try:
                about = again(partial(os.stat, path))
                entries = again(partial(list_entries, path))
            except (FileNotFoundError, NotADirectoryError):  # removed since its parent was listed
                continue
            if (about.st_dev, about.st_ino) in self._listed:
                self.found.skipped.add(LISTED_BEFORE, folder)
                continue
            self._listed.add((about.st_dev, about.st_ino))
            for base, info in entries:
                name = f"{folder}/{base}" if folder else base
                if not stat.S_ISDIR(info.st_mode):
                    self.add(name, info)
                elif not is_utf8(name):
                    self.found.skipped.add(NOT_UTF8, name)
                elif not is_left_out(name):
                    folders.append(name)

    def add(self, name: str, info: os.stat_result) -> None:
        """Note what is no folder: a file, a link to anything, a FIFO, ..."""
        is_link = stat.S_ISLNK(info.st_mode)
        why, target = self._behind(name, info) if is_link else (_kind(info), info)
        if name.rpartition("/")[2].startswith("."):
            return
        if why != LINKED_FOLDER and not name.lower().endswith(self.suffixes):
            if not why:
                self.found.others[suffix_of(name)] += 1
            return
        if not is_utf8(name):
            self.found.skipped.add(NOT_UTF8, name)
            return
        if why == LINKED_FOLDER and self.follow_links:
            heapq.heappush(self.linked, name)
            return
        if why:
            self.found.skipped.add(why, name)
        if not why or name.endswith(SIDECARS):
            self.found.files[name] = _sizes(info, target)

    def _behind(self, name: str, link: os.stat_result) -> tuple[str, os.stat_result]:
        """Why what a link leads to is not read, "" where it is, and what is known of it."""
        try:
            target = os.stat(f"{self.root}/{name}")
        except OSError:
            return BROKEN, link
        if stat.S_ISDIR(target.st_mode):
            return LINKED_FOLDER, target
        why = _kind(target)
        leaves = not why and not self.follow_links and _real_name(self.root, name) is None
        return LEAVES if leaves else why, target


def list_entries(path: str) -> list[tuple[str, os.stat_result]]:
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                found.append((entry.name, entry.stat(follow_symlinks=False)))
    return found


def _kind(about: os.stat_result) -> str:
    """What a file is that cannot be read to its end; "" for a regular one."""
    kind = stat.S_IFMT(about.st_mode)
    return "" if kind == stat.S_IFREG else KINDS.get(kind, "device")


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps each byte that is not as half of a surrogate pair
        return False
    return True


def _sizes(entry: os.stat_result, target: os.stat_result) -> dict[str, Any]:
    """Of the target, with the later of both times: a link and what it leads to can change."""
    both = entry, target
    created = max(getattr(one, "st_birthtime", one.st_ctime) for one in both)
    mtime = max(one.st_mtime for one in both)
    return {"size": target.st_size, "mtime": mtime, "created": created}


def is_inside(root: str, name: str) -> bool:
    """Whether what a name below the folder `root` leads to is in that folder."""
    return _real_name(root, name) is not None


def _real_name(root: str, name: str) -> str | None:
    """The path below the real path of the root of what a file's name leads to; None outside."""
    folder = _real(root).rstrip("/") + "/"
    real = _real(f"{root}/{name}")
    return real.removeprefix(folder) if real.startswith(folder) else None


def _real(path: str) -> str:
    return os.path.realpath(path).replace(os.sep, "/")


def open_local(root: str, name: str, follow_links: bool, buffering: int = -1) -> BinaryIO:
    """Open a regular file below the folder `root` for reading.

    Raises OSError: PermissionError where it is something else or, unless `follow_links`, where
    links lead out of `root`.
    """
    path = f"{root}/{name}"
    try:
        number = os.open(path, FILE) if follow_links else _open_inside(root, name)
    except OSError as error:
        if error.errno in NO_FILE:
            raise PermissionError(errno.EPERM, NOT_REGULAR, path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise PermissionError(errno.EPERM, NOT_REGULAR, path)
        return os.fdopen(number, "rb", buffering)
    except BaseException:
        os.close(number)
        raise


def _open_inside(root: str, name: str) -> int:
    """A link to a file inside is opened by that file's own name. Only a name without links is
    ever opened, so that one that is replaced meanwhile leads nowhere."""
    try:
        return _open_without_links(root, name)
    except OSError as error:
        if error.errno not in LINKED:
            raise
    real = _real_name(root, name)
    if real is None:
        raise PermissionError(errno.EPERM, f"a {LEAVES}; --follow-links reads it", f"{root}/{name}")
    try:
        return _open_without_links(root, real)
    except OSError as error:
        if error.errno not in LINKED:
            raise
        raise PermissionError(errno.EPERM, f"a {BROKEN}", f"{root}/{name}") from error


def _open_without_links(root: str, name: str) -> int:
    if not HAS_DIR_FD:
        return _open_after_looking(root, name)
    folder = os.open(root, FOLDER)
    try:
        *folders, last = name.split("/")
        for one in folders:
            inner = os.open(one, FOLDER | NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(last, FILE | NO_LINK, dir_fd=folder)
    finally:
        os.close(folder)


def _open_after_looking(root: str, name: str) -> int:
    """Where a system cannot refuse links while it opens: a link that is put there between the look
    and the opening is followed, but what is opened is looked at once more."""
    path = root
    for one in name.split("/"):
        path = f"{path}/{one}"
        about = os.lstat(path)
        if stat.S_ISLNK(about.st_mode) or _is_junction(path):
            raise OSError(errno.ELOOP, "a link", path)
    number = os.open(path, FILE)
    opened = os.fstat(number)
    if (opened.st_dev, opened.st_ino) != (about.st_dev, about.st_ino):
        os.close(number)
        raise OSError(errno.ELOOP, "replaced while it was opened", path)
    return number


def _is_junction(path: str) -> bool:
    """Whether a folder of Windows leads to another one."""
    return bool(getattr(os.path, "isjunction", lambda _: False)(path))


def read_local(root: str, name: str, bound: int, follow_links: bool) -> bytes:
    """All bytes of a regular file. Raises FileTooLargeError for one of more than `bound`, and
    OSError as open_local does."""
    with open_local(root, name, follow_links) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = (stream.read(size + 1) or b"") if size <= bound else b""
        if len(data) > size:  # it grows, or is one of those whose size is not told
            data += stream.read(bound + 1 - len(data)) or b""
    if max(size, len(data)) > bound:
        raise FileTooLargeError(f"{name}: at most {bound} bytes are read")
    return data
