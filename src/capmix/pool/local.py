"""List and open the files of a pool on a local disk.

An untrusted pool may hold links to any file on this computer, and files whose reading never ends
(FIFOs, devices). Only regular files inside the pool's real path are opened; `follow_links` allows
any regular file. Files are checked when they are listed and again when they are opened, because
they may be replaced in between.
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

# Windows has none of these flags, and opens files in text mode by default.
HAS_DIR_FD = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
# Without O_NONBLOCK, opening a FIFO without a writer blocks.
FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
LINKED = (errno.ELOOP, errno.ENOTDIR, errno.EMLINK)  # O_NOFOLLOW on a link; depends on the system
NO_FILE = (errno.ENXIO, errno.ENODEV)  # a socket, or a device without a driver
SIDECARS = (".txt", ".json")

LEAVES = "link that leaves the pool"
BROKEN = "broken link"
LINKED_FOLDER = "linked folder"
LISTED_BEFORE = "link to a folder that is already listed"
NOT_UTF8 = "name that is not UTF-8"
PLURALS = {
    LEAVES: "links that leave the pool",
    LINKED_FOLDER: "linked folders",
    LISTED_BEFORE: "links to folders that are already listed",
    NOT_UTF8: "names that are not UTF-8",
}
FOLLOWED = (LEAVES, LINKED_FOLDER)  # read with --follow-links
KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
NOT_REGULAR = "not a regular file"


class FileTooLargeError(ValueError):
    """A file is larger than the limit for its kind."""


@dataclass
class Skipped:
    """Counts of the entries that were skipped in a pool's folders, by kind, and an example name."""

    counts: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def add(self, kind: str, name: str) -> None:
        self.counts[kind] += 1
        self.example = min(self.example or name, name)

    def __str__(self) -> str:
        """Example: `3 entries skipped (2 FIFOs, 1 socket), for example 'a.jpg'`; "" for none."""
        total = self.counts.total()
        if not total:
            return ""
        kinds = ", ".join(
            f"{count:,} {kind if count == 1 else PLURALS.get(kind, f'{kind}s')}"
            for kind, count in sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        )
        entries = "1 entry" if total == 1 else f"{total:,} entries"
        advice = any(kind in self.counts for kind in FOLLOWED)
        hint = ". Use --follow-links to read linked files and folders" if advice else ""
        return f"{entries} skipped ({kinds}), for example {self.example!r}{hint}"


@dataclass
class Listing:
    """The files below a pool's folder: `files` maps relative paths to size and times.

    Skipped .txt and .json files are in `files` too: without its sidecar a sample would have another
    text or uid, so it must fail when the sidecar is opened. `others` counts regular files with
    other suffixes than the requested ones, by suffix.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    others: Counter[str] = field(default_factory=Counter)


def list_local(root: str, suffixes: tuple[str, ...], follow_links: bool) -> Listing:
    """List the files below a folder whose names end in one of `suffixes`, ignoring case.

    Hidden files and folders are left out. Each folder is listed once, no matter how many links
    lead to it. Raises OSError if a folder cannot be listed; folders removed meanwhile are ignored.
    """
    walk = _Walk(root, suffixes, follow_links)
    walk.below("")
    while walk.linked:  # after all real folders, so that these are listed under their own names
        walk.below(heapq.heappop(walk.linked))
    files = dict(sorted(walk.found.files.items()))
    return Listing(files, walk.found.skipped, walk.found.others)


def list_named(root: str, names: Iterable[str], follow_links: bool) -> Listing:
    """List the given files (paths relative to the folder) in the form that list_local returns.

    Raises OSError if one is missing.
    """
    walk = _Walk(root, ("",), follow_links)
    for name in names:
        walk.add(name, again(partial(os.lstat, f"{root}/{name}")))
    return walk.found


class _Walk:
    """A listing in progress. `linked` is a heap of linked folders that are still to be listed."""

    def __init__(self, root: str, suffixes: tuple[str, ...], follow_links: bool):
        self.root, self.suffixes, self.follow_links = root, suffixes, follow_links
        self.found = Listing()
        self.linked: list[str] = []
        self._listed: set[tuple[int, int]] = set()

    def below(self, start: str) -> None:
        """List a folder and its subfolders, without linked folders."""
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
        """Record an entry that is not a folder: a file, a link to a file or folder, a FIFO, ..."""
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
        """Return why a link's target is not read ("" if it is read), and the target's stat result.

        For a broken link, the stat result is that of the link itself.
        """
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
    """Return the kind of a special file (FIFO, socket, device); "" for a regular file."""
    kind = stat.S_IFMT(about.st_mode)
    return "" if kind == stat.S_IFREG else KINDS.get(kind, "device")


def is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python decodes each invalid byte to a lone surrogate
        return False
    return True


def _sizes(entry: os.stat_result, target: os.stat_result) -> dict[str, Any]:
    """Return the target's size, and the later times of link and target, as both can change."""
    both = entry, target
    created = max(getattr(one, "st_birthtime", one.st_ctime) for one in both)
    mtime = max(one.st_mtime for one in both)
    return {"size": target.st_size, "mtime": mtime, "created": created}


def is_inside(root: str, name: str) -> bool:
    """Whether a path relative to `root`, with all links resolved, is inside `root`."""
    return _real_name(root, name) is not None


def _real_name(root: str, name: str) -> str | None:
    """Resolve links in a path below `root`. Returns it relative to the real root; None outside."""
    folder = _real(root).rstrip("/") + "/"
    real = _real(f"{root}/{name}")
    return real.removeprefix(folder) if real.startswith(folder) else None


def _real(path: str) -> str:
    return os.path.realpath(path).replace(os.sep, "/")


def open_local(root: str, name: str, follow_links: bool, buffering: int = -1) -> BinaryIO:
    """Open a regular file below the folder `root` for reading.

    Raises OSError; in particular PermissionError if it is not a regular file, or if a link leads
    out of `root` and `follow_links` is false.
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
    """Open a file inside `root`, and return its descriptor.

    A link is resolved first, and then its target is opened by a path without links. A link that
    replaces a part of that path meanwhile is therefore not followed.
    """
    try:
        return _open_without_links(root, name)
    except OSError as error:
        if error.errno not in LINKED:
            raise
    real = _real_name(root, name)
    if real is None:
        raise PermissionError(
            errno.EPERM, f"a {LEAVES}; use --follow-links to read it", f"{root}/{name}"
        )
    try:
        return _open_without_links(root, real)
    except OSError as error:
        if error.errno not in LINKED:
            raise
        raise PermissionError(errno.EPERM, f"a {BROKEN}", f"{root}/{name}") from error


def _open_without_links(root: str, name: str) -> int:
    if not HAS_DIR_FD:
        return _open_after_check(root, name)
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


def _open_after_check(root: str, name: str) -> int:
    """Open a file on a system without O_NOFOLLOW.

    A link that is created between the check and the open is followed, so the opened file is
    compared with the checked one.
    """
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
    """Whether a path is a Windows junction: a folder that links to another one."""
    return bool(getattr(os.path, "isjunction", lambda _: False)(path))


def read_local(root: str, name: str, bound: int, follow_links: bool) -> bytes:
    """Read all bytes of a regular file.

    Raises FileTooLargeError if it has more than `bound` bytes, and OSError as open_local does.
    """
    with open_local(root, name, follow_links) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = (stream.read(size + 1) or b"") if size <= bound else b""
        if len(data) > size:  # it is growing, or reports no size (as files in /proc do)
            data += stream.read(bound + 1 - len(data)) or b""
    if max(size, len(data)) > bound:
        raise FileTooLargeError(f"{name}: larger than the limit of {bound} bytes")
    return data
