"""Take a directory for an export, and remove from it an older export.

The files that a list of the older one names go where they are still as they were written. Shards
without a list (those of capmix 0.1, or of a killed run) lose the files whose names capmix gives.
All else stays.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from capmix.errors import UserError
from capmix.export.lance import refuse_added_versions
from capmix.export.manifest import DATASET, ExportTarget
from capmix.pool.sample import IMAGE_SUFFIXES, SAFE_UID
from capmix.storage.filesystem import again, files_below
from capmix.storage.layout import EXPORT_ABOUT, EXPORT_CARD, EXPORT_MARKERS
from capmix.storage.record import FileRecord
from capmix.storage.store import READERS

log = logging.getLogger(__name__)

TAR_FILES = r"(?P<shard>\d{8})(\.tar|_stats\.json)|sizes\.json"
IMAGE = rf"{SAFE_UID.pattern}-\d+\.({'|'.join(IMAGE_SUFFIXES)}|txt)"
FILES = {  # what an export of a form writes
    "webdataset": re.compile(TAR_FILES),
    "datacomp": re.compile(TAR_FILES),
    "parquet": re.compile(r"data/train-(?P<shard>\d{8})\.parquet"),
    "lance": re.compile(rf"data/train-(?P<shard>\d{{8}})\.lance|{DATASET.pattern}"),
    "jsonl": re.compile(
        rf"(?P<shard>\d{{8}})\.jsonl|images/(?P<folder>\d{{8}})/{IMAGE}|metadata\.jsonl|llava\.json"
    ),
    "csv": re.compile(r"captions\.csv"),
}
MARKER = re.compile(rf"{EXPORT_MARKERS}/\d{{8}}\.jsonl?")
REMOVED_AT_ONCE = 1_000


@dataclass(frozen=True)
class Claim:
    """What an export is made of. `shards` is how many output shards it has; None: not known."""

    form: str
    shards: int | None

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Claim":
        shards = about.get("shards")
        return cls(str(about.get("form")), shards if isinstance(shards, int) else None)

    def writes(self, name: str) -> bool:
        """Whether an export like this one gives a file that name."""
        found = FILES[self.form].fullmatch(name) if self.form in FILES else None
        number = shard_of(found)
        return bool(found) and (not number or self.shards is None or int(number) < self.shards)


def shard_of(found: re.Match[str] | None) -> str | None:
    """The number of the shard in a name that one of FILES matches; None for files of the whole."""
    groups = found.groupdict() if found else {}
    return groups.get("shard") or groups.get("folder")


def refuse_foreign(target: ExportTarget, is_shared: bool = False) -> None:
    """Raise UserError where the directory holds something else than an export, unless it
    `is_shared`."""
    if is_shared or isinstance(target.read_json(EXPORT_ABOUT), dict):
        return
    held: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        held = again(lambda: target.fs.ls(target.root, detail=False))
    if held:
        raise UserError(f"{target.location} holds something else: export to an empty directory")


def claim(target: ExportTarget, about: dict[str, Any], is_shared: bool = False) -> None:
    """Make sure that the directory is new or is an export of ours; of an older one, clear it.

    `about` says what the export is made from; `shards`, which follows from it, how many output
    shards there are. Raises UserError where the directory holds something else, unless it
    `is_shared`, or where a file that is kept has a name that the export would write.
    """
    known = target.read_json(EXPORT_ABOUT)
    is_ours = isinstance(known, dict)
    if is_ours and {**known, "shards": about["shards"]} == about:
        lists = [*target.lists(), *target.lists_of_found()]
        _remove(target, [name for name in lists if not _is_of(name, about["shards"])])
        return
    refuse_foreign(target, is_shared)
    if is_ours:
        _clear(target, Claim.of(known), Claim.of(about))
    target.write_json(EXPORT_ABOUT, about)
    _remove(target, [*target.lists(), *target.lists_of_found()])


def _clear(target: ExportTarget, older: Claim, newer: Claim) -> None:
    """Remove the files of the older export. Markers go first, so that no shard counts as finished
    whose files are gone; lists go last, after `about` is written, so that a clearing that was
    killed goes on as it began."""
    if older.form == "lance":
        refuse_added_versions(target)
    sizes = _names(target, "")
    ours, changed, listed = set(), [], set()
    for name in target.lists():
        listed.add(name.rpartition("/")[2].removesuffix(".txt"))
        files = {one: w for one, w in target.written(name).items() if one in sizes}
        for one, is_same in _compared(target, files, sizes):
            ours.add(one) if is_same else changed.append(one)
    theirs = set(changed)
    ours |= {
        name
        for name in sizes
        if name not in theirs
        and older.writes(name)
        and shard_of(FILES[older.form].fullmatch(name)) not in listed
    }
    in_the_way = sorted(name for name in sizes if name not in ours and newer.writes(name))
    if in_the_way:
        raise UserError(
            f"{target.path(in_the_way[0])} is not as capmix wrote it, and the export would replace "
            f"it ({len(in_the_way):,} such): move it away, or name another --out"
        )
    _remove(target, [name for name in sizes if MARKER.fullmatch(name)])
    _remove(target, sorted(ours))
    kept = [name for name in changed if name != EXPORT_CARD]
    if kept:
        log.warning(
            "%s: kept %s files of the older export that are not as capmix wrote them, such as %s",
            target.location,
            f"{len(kept):,}",
            kept[0],
        )


def _is_of(manifest: str, shards: int) -> bool:
    """Whether a list can be one of an export of so many shards: not left by a killed clearing."""
    number = manifest.rpartition("/")[2].partition(".")[0]
    return number == "export" or int(number) < shards


def _names(target: ExportTarget, folder: str) -> dict[str, int]:
    """Sizes of the files below a folder of the export by name."""
    found = files_below(target.fs, target.path(folder).rstrip("/"))
    return {path[len(target.root) + 1 :]: info["size"] for path, info in found.items()}


def _compared(
    target: ExportTarget, files: dict[str, FileRecord], sizes: dict[str, int]
) -> Iterator[tuple[str, bool]]:
    """Whether each file is as it was written; several are read at once."""

    def is_same(name: str) -> bool:
        return target.is_as_written(name, files[name], sizes[name])

    names = list(files)
    with ThreadPoolExecutor(READERS) as threads:
        yield from zip(names, threads.map(is_same, names), strict=True)


def _remove(target: ExportTarget, names: list[str]) -> None:
    """Remove files, and on a disk the folders that are empty then."""
    if not target.is_local:
        for start in range(0, len(names), REMOVED_AT_ONCE):
            paths = [target.path(name) for name in names[start : start + REMOVED_AT_ONCE]]
            again(partial(target.fs.rm, paths))
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another run removes the same
            target.fs.rm_file(target.path(name))
    folders = {name.rpartition("/")[0] for name in names} - {""}
    folders |= {folder.rpartition("/")[0] for folder in folders} - {""}
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(target.path(folder))
