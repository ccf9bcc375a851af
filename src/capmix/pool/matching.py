"""Find the files and folders on a local disk that match a pattern.

The same rules hold as for listing a directory: linked folders are entered only if links are
followed, and no folder is entered twice.
"""

import fnmatch
import heapq
import os
import re
import stat
from functools import partial
from pathlib import Path

from capmix.pool.local import (
    LINKED_FOLDER,
    LISTED_BEFORE,
    NOT_UTF8,
    Skipped,
    is_inside,
    is_utf8,
    list_entries,
)
from capmix.storage.filesystem import again, is_left_out

WILD = re.compile(r"[*?\[]")
DEEP = "**"  # any number of folders


def match_local(
    root: str, pattern: str, follow_links: bool
) -> tuple[list[tuple[str, bool]], Skipped]:
    """Find what matches a pattern of `*`, `?`, `[...]` and `**` below the folder `root`.

    Returns the relative paths in order, each with whether it is a folder, and what was skipped.
    Hidden entries match only parts of the pattern that begin with a dot. A folder that the pattern
    names without a wildcard may be a link to another folder in `root`. If links are followed and
    several paths lead to one folder, a path without links is preferred. Raises OSError if a folder
    cannot be listed; folders removed meanwhile are ignored.
    """
    found = _Matching(root, pattern.split("/"), follow_links)
    found.run()
    if follow_links:
        found.leave_out_nested()
    skipped = Skipped()
    for name, kind in found.skipped.items():
        skipped.add(kind, name)
    return sorted(found.names.items()), skipped


class _Matching:
    """A search in progress.

    `_folders` and `_linked` hold the folders still to be entered, each with the number of the
    pattern's part that its entries are compared with; after the last part, the folder itself
    matches.
    """

    def __init__(self, root: str, parts: list[str], follow_links: bool):
        self.root, self.parts, self.follow_links = root, parts, follow_links
        self.names: dict[str, bool] = {}
        self.skipped: dict[str, str] = {}
        self._folders = [("", 0)]
        self._linked: list[tuple[str, int]] = []
        self._seen: set[tuple[int, int, int]] = set()

    def run(self) -> None:
        while self._folders or self._linked:
            if self._folders:
                self._enter(*self._folders.pop())
                continue
            name, at = heapq.heappop(self._linked)
            if not self._enter(name, at):
                self.skipped[name] = LISTED_BEFORE

    def leave_out_nested(self) -> None:
        """Leave out linked folders that contain, or are inside, another matching folder.

        Matching folders are listed recursively, so their files would be listed twice.
        """
        folders = [name for name, is_folder in self.names.items() if is_folder]
        real = {name: os.path.realpath(f"{self.root}/{name}") for name in folders}
        root = os.path.realpath(self.root)
        linked = [name for name in folders if real[name] != os.path.normpath(f"{root}/{name}")]
        kept = {real[name] for name in folders} - {real[name] for name in linked}
        around = {above for path in kept for above in _above(path)}
        for name in sorted(linked):
            path = real[name]
            if path in around or not kept.isdisjoint([path, *_above(path)]):
                del self.names[name]
                self.skipped[name] = LISTED_BEFORE
            else:
                kept.add(path)
                around |= set(_above(path))

    def _enter(self, folder: str, at: int) -> bool:
        """Match a folder's entries. Returns false if it was entered before at this part."""
        try:
            about = again(partial(os.stat, f"{self.root}/{folder}"))
            place = (about.st_dev, about.st_ino, at)
            if place in self._seen:
                return False
            self._seen.add(place)
            if at == len(self.parts):
                self.names[folder] = True
                return True
            entries = again(partial(self._matches, folder, self.parts[at]))
        except (FileNotFoundError, NotADirectoryError):  # removed since its parent was listed
            return True
        is_deep, is_last = self.parts[at] == DEEP, at + 1 == len(self.parts)
        if is_deep and not is_last:
            self._folders.append((folder, at + 1))
        for base, info in entries:
            self._add(f"{folder}/{base}" if folder else base, info, at, is_deep, is_last)
        return True

    def _matches(self, folder: str, part: str) -> list[tuple[str, os.stat_result]]:
        path = f"{self.root}/{folder}" if folder else self.root
        if not WILD.search(part):
            return [(part, os.lstat(f"{path}/{part}"))]
        found = [one for one in list_entries(path) if fnmatch.fnmatch(one[0], part)]
        if part == DEEP:
            return [(base, info) for base, info in found if not is_left_out(base)]
        return [one for one in found if part.startswith(".") or not one[0].startswith(".")]

    def _add(self, name: str, info: os.stat_result, at: int, is_deep: bool, is_last: bool) -> None:
        """Record an entry that matches the part `at`, or queue it if it is a folder."""
        is_link = stat.S_ISLNK(info.st_mode)
        is_folder = os.path.isdir(f"{self.root}/{name}") if is_link else stat.S_ISDIR(info.st_mode)
        next_part = at if is_deep else at + 1
        if not is_folder:
            self.names |= {name: False} if is_last else {}
        elif not is_utf8(name):
            self.skipped[name] = NOT_UTF8
        elif not is_link:
            self._folders.append((name, next_part))
        elif self.follow_links:
            heapq.heappush(self._linked, (name, next_part))
        elif WILD.search(self.parts[at]) or not is_inside(self.root, name):
            self.skipped[name] = LINKED_FOLDER
        else:
            self._folders.append((name, next_part))


def _above(path: str) -> list[str]:
    return [str(folder) for folder in Path(path).parents]
