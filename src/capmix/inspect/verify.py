"""Verify files of a work directory and of exports against their digests, and pool samples against
the index.

Markers have a digest of each file. Files written by old versions of capmix have none; these are
counted.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.export.manifest import ExportTarget
from capmix.models.index import indexed_bytes
from capmix.pool import BadSample, Pool
from capmix.settings.counted import counted
from capmix.settings.tables import table_lines
from capmix.storage.commands import command_of, how_to_write, stage_folder
from capmix.storage.filesystem import NotAFileError
from capmix.storage.layout import (
    EXPORT_ABOUT,
    EXPORT_CARD,
    EXPORT_FILES,
)
from capmix.storage.marker import Marker
from capmix.storage.store import ABSENT, Store

DAMAGED_MARKER = "the marker is damaged"


@dataclass(frozen=True)
class Damage:
    """A damaged file, or a changed sample of the pool (`part` is then empty)."""

    part: str
    file: str
    how: str
    made_by: str


@dataclass
class Verified:
    """Counts of what was read, and the damage found. `unknown` counts files without a digest."""

    parts: int = 0
    files: int = 0
    bytes: int = 0
    unknown: int = 0
    samples: int = 0
    damaged: list[Damage] = field(default_factory=list)
    discarded: int = 0

    @property
    def changed_samples(self) -> int:
        """Number of damaged items that are samples of the pool."""
        return sum(not one.part for one in self.damaged)

    def lines(self) -> list[str]:
        """Return a human-readable table of the damage, and a summary."""
        heads = ("file", "problem", "recompute with")
        rows = [[one.file, one.how, one.made_by] for one in self.damaged]
        read = f"{counted(self.parts, 'part')}, {counted(self.files, 'file')}, "
        read += counted(self.bytes, "byte")
        if self.samples:
            read += f", {counted(self.samples, 'sample')} of the pool"
        lines = table_lines(heads, rows, "lll") if rows else []
        lines.append(f"verified {read}: {len(self.damaged):,} damaged")
        if self.unknown:
            lines.append(f"files without a digest (old capmix version): {self.unknown:,}")
        if self.discarded:
            lines.append(f"parts marked as missing: {self.discarded:,}")
        return lines


def verify(
    store: Store,
    pool: Pool | None = None,
    exports: Sequence[str] = (),
    discard: bool = False,
) -> Verified:
    """Read every file listed in a marker and compare it with its digest.

    With `pool`, also compare the pool's samples with the index. With `discard`, mark damaged parts
    as missing, so that the next run recomputes them. Raises UserError if one of `exports` is not an
    export, and OSError if the storage fails.
    """
    found = Verified()
    _verify_parts(store, "", found, discard)
    for place in exports:
        target = ExportTarget(place)
        if target.size(EXPORT_ABOUT) < 0:
            raise UserError(f"--exports {place}: expected a directory written by `capmix export`")
        _verify_parts(target, f"{place.rstrip('/')}/", found, discard)
        _verify_listed(target, f"{place.rstrip('/')}/", found)
    if pool is not None:
        found.damaged += _changed_samples(store, pool, found)
    return found


def _verify_parts(store: Store, place: str, found: Verified, discard: bool) -> None:
    parts = store.parts("")
    settings = cache(partial(_settings, store, parts))
    with progress("verify", "part", len(parts)) as bar:
        for part in parts:
            marker, damage = _damage(store, part)
            if damage:  # check under lock: another run may be writing the part
                with store.locked(part):
                    marker, damage = _damage(store, part)
                    if damage and discard:
                        store.remove_marker(part)
                        found.discarded += 1
            if damage:
                config = marker.config if marker else settings(stage_folder(part))
                made_by = "capmix export" if place else _made_by(part, config)
                found.damaged += [
                    Damage(part, f"{place}{name}", how, made_by) for name, how in damage.items()
                ]
            found.parts += 1
            if marker is not None:
                found.files += len(marker.files)
                found.bytes += marker.bytes
                found.unknown += sum(not one.digest for one in marker.files.values())
            bar.update(1)


def _damage(store: Store, part: str) -> tuple[Marker | None, dict[str, str]]:
    marker = _marker(store, part)
    return marker, {part: DAMAGED_MARKER} if marker is None else store.damage(marker)


def _marker(store: Store, part: str) -> Marker | None:
    try:
        return store.read_marker(part)
    except NotAFileError:
        return None


def _verify_listed(target: ExportTarget, place: str, found: Verified) -> None:
    """Verify files of an export that no marker lists, for example images and captions.

    The card is skipped, since users are meant to edit it.
    """
    of_parts = {name for part in target.parts("") for name in _files(target, part)}
    for manifest in target.files(EXPORT_FILES):
        for name, record in target.written(manifest).items():
            if name in of_parts or name == EXPORT_CARD:
                continue
            try:
                how = record.difference_to(target.digest(name))
            except ABSENT:
                how = "missing"
            if how:
                found.damaged.append(Damage(manifest, f"{place}{name}", how, "capmix export"))
            found.files += 1
            found.bytes += record.size


def _files(store: Store, part: str) -> Iterable[str]:
    marker = store.read_marker(part)
    return marker.files if marker else ()


def _made_by(part: str, config: dict[str, Any] | None) -> str:
    """Return the command that writes a part, or how to write it in words."""
    return command_of(part, config) or how_to_write(part, config)


def _settings(store: Store, parts: Sequence[str], folder: str) -> dict[str, Any] | None:
    """Return the settings of the first part of a stage folder whose marker is not damaged.

    Subsets, for example, have no folder in common.
    """
    if "/" not in folder:
        return None
    markers = (_marker(store, one) for one in parts if stage_folder(one) == folder)
    return next((one.config for one in markers if one is not None), None)


def _changed_samples(store: Store, pool: Pool, found: Verified) -> Iterator[Damage]:
    """Yield samples that have changed or disappeared since the pool was indexed."""
    with progress("verify pool", "shard", len(pool.shards)) as bar:
        for shard in pool.shards:
            known = indexed_bytes(store, shard.name)
            for sample in pool.read(shard):
                if isinstance(sample, BadSample):
                    continue
                found.samples += 1
                before = known.pop(sample.key, None)
                if before is not None and not before.are_of(sample):
                    yield _of_pool(f"{shard.name}/{sample.key}", "changed since it was indexed")
            for key in known:
                yield _of_pool(f"{shard.name}/{key}", "indexed but missing")
            bar.update(1)


def _of_pool(file: str, how: str) -> Damage:
    return Damage("", file, how, "restore the pool's shard from a copy")
