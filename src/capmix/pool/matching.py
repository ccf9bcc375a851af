"""What a pattern finds on a local disk, as a directory is listed: no folder behind a link is gone
into, unless links are followed, and none twice."""

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
DEEP = "**"  # any folders, or none


def match_local(
    root: str, pattern: str, follow_links: bool
) -> tuple[list[tuple[str, bool]], Skipped]:
    """What there is below the folder `root` that a pattern of `*`, `?`, `[...]` and `**` matches:
    names below it, in order, and whether each is a folder.

    What is hidden matches only what begins with a dot too. A folder that the pattern itself names
    may be a link to another one in `root`. Where links are followed, a folder that several names
    lead to has one without links if there is any. Raises OSError where a folder cannot be listed,
    unless it is gone.
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
    """A search under way. `folders`, and those behind links, are to be compared with the part of
    the pattern whose number is beside them; behind all parts, they are found."""

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
                self._look_into(*self._folders.pop())
                continue
            name, at = heapq.heappop(self._linked)
            if not self._look_into(name, at):
                self.skipped[name] = LISTED_BEFORE

    def leave_out_nested(self) -> None:
        """Leave out folders behind links that are in another one, or around it: all that is below
        a folder is listed."""
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

    def _look_into(self, folder: str, at: int) -> bool:
        """Whether no other name has led to this folder at this part of the pattern."""
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
            self._meet(f"{folder}/{base}" if folder else base, info, at, is_deep, is_last)
        return True

    def _matches(self, folder: str, part: str) -> list[tuple[str, os.stat_result]]:
        path = f"{self.root}/{folder}" if folder else self.root
        if not WILD.search(part):
            return [(part, os.lstat(f"{path}/{part}"))]
        found = [one for one in list_entries(path) if fnmatch.fnmatch(one[0], part)]
        if part == DEEP:
            return [(base, info) for base, info in found if not is_left_out(base)]
        return [one for one in found if part.startswith(".") or not one[0].startswith(".")]

    def _meet(self, name: str, info: os.stat_result, at: int, is_deep: bool, is_last: bool) -> None:
        """An entry that matches the part `at`."""
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
