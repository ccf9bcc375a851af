"""Claim a directory for an export and remove an earlier export from it.

Files listed by the earlier export are removed unless they have changed since. For shards without a
list (written by capmix 0.1 or by a killed run), files with capmix's names are removed. All other
files are kept.
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
FILES = {  # the names that an export writes, by format
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
    """The format of an export and its number of output shards (None if unknown)."""

    form: str
    shards: int | None

    @classmethod
    def of(cls, about: dict[str, Any]) -> "Claim":
        shards = about.get("shards")
        return cls(str(about.get("form")), shards if isinstance(shards, int) else None)

    def writes(self, name: str) -> bool:
        """Return whether this export would write a file with that name."""
        found = FILES[self.form].fullmatch(name) if self.form in FILES else None
        number = shard_of(found)
        return bool(found) and (not number or self.shards is None or int(number) < self.shards)


def shard_of(found: re.Match[str] | None) -> str | None:
    """Return the shard number in a name matched by FILES; None for files of the whole export."""
    groups = found.groupdict() if found else {}
    return groups.get("shard") or groups.get("folder")


def refuse_foreign(target: ExportTarget, is_shared: bool = False) -> None:
    """Raise UserError if the directory is not empty and not an export, unless it `is_shared`."""
    if is_shared or isinstance(target.read_json(EXPORT_ABOUT), dict):
        return
    held: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        held = again(lambda: target.fs.ls(target.root, detail=False))
    if held:
        raise UserError(
            f"{target.location} is not empty and not a capmix export; name an empty directory"
        )


def claim(target: ExportTarget, about: dict[str, Any], is_shared: bool = False) -> None:
    """Claim the directory for an export and remove an earlier, different export from it.

    `about` describes the export's inputs and settings; its `shards` is the number of output shards.
    Raises UserError if the directory holds other files, unless it `is_shared`, or if a file to be
    kept has a name that the export would write.
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
    """Remove the files of the earlier export.

    Markers are removed first, so that no shard counts as finished without its files. Lists are
    removed last, after `about` is written, so that an interrupted removal can resume.
    """
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
            f"the export would replace {len(in_the_way):,} files that capmix did not write or that "
            f"have changed since (first: {target.path(in_the_way[0])}); move them, or name another "
            "--out"
        )
    _remove(target, [name for name in sizes if MARKER.fullmatch(name)])
    _remove(target, sorted(ours))
    kept = [name for name in changed if name != EXPORT_CARD]
    if kept:
        log.warning(
            "%s: kept %s files of the earlier export that have changed since (first: %s)",
            target.location,
            f"{len(kept):,}",
            kept[0],
        )


def _is_of(manifest: str, shards: int) -> bool:
    """Return whether a list belongs to an export of that many shards, and was not left by an
    interrupted removal."""
    number = manifest.rpartition("/")[2].partition(".")[0]
    return number == "export" or int(number) < shards


def _names(target: ExportTarget, folder: str) -> dict[str, int]:
    """Return the sizes of all files below a folder of the export, by name."""
    found = files_below(target.fs, target.path(folder).rstrip("/"))
    return {path[len(target.root) + 1 :]: info["size"] for path, info in found.items()}


def _compared(
    target: ExportTarget, files: dict[str, FileRecord], sizes: dict[str, int]
) -> Iterator[tuple[str, bool]]:
    """Yield whether each file is unchanged; files are read in parallel."""

    def is_same(name: str) -> bool:
        return target.is_as_written(name, files[name], sizes[name])

    names = list(files)
    with ThreadPoolExecutor(READERS) as threads:
        yield from zip(names, threads.map(is_same, names), strict=True)


def _remove(target: ExportTarget, names: list[str]) -> None:
    """Remove files and, on a local disk, folders that become empty."""
    if not target.is_local:
        for start in range(0, len(names), REMOVED_AT_ONCE):
            paths = [target.path(name) for name in names[start : start + REMOVED_AT_ONCE]]
            again(partial(target.fs.rm, paths))
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another run may have removed it
            target.fs.rm_file(target.path(name))
    folders = {name.rpartition("/")[0] for name in names} - {""}
    folders |= {folder.rpartition("/")[0] for folder in folders} - {""}
    for folder in sorted(folders, reverse=True):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(target.path(folder))
