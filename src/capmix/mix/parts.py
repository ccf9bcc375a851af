"""The parts that a recipe reads: check that all exist and that none is stale."""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.score.array import PinnedParts
from capmix.score.settings import ScoreSettings
from capmix.settings.base import defaults_of
from capmix.storage.commands import INPUT_SOURCES, how_to_write
from capmix.storage.compare import changes
from capmix.storage.layout import ANNOTATIONS, CAPTIONS, SAMPLES, SCORES, texts_folder
from capmix.storage.marker import Marker
from capmix.storage.names import annotate_command
from capmix.storage.record import FileRecord
from capmix.storage.store import Store

DEFAULTS = {CAPTIONS: defaults_of(CaptionSettings), SCORES: defaults_of(ScoreSettings)}


@dataclass(frozen=True)
class Parts:
    """The contents of the markers of a recipe's parts.

    digests: one per folder, over all its markers.
    rows: the number of rows of each shard, in pool order.
    whole: the shards in which no sample failed.
    following: the folders of scores that were computed, row by row, from the current texts.
    records: the record of every file of these parts, by file name.
    unrecorded: the fingerprints of parts with a file whose digest is not compared when it is read,
        because an older capmix wrote it or because it is remote and large.
    fingerprints: the fingerprint of each part, including texts that only scores refer to.
    folders: the folders of all these parts.
    left_out: which samples are excluded (excluded.py), for shards that have some: a bit per row.
    """

    digests: dict[str, str]
    rows: dict[str, int]
    whole: frozenset[str]
    following: frozenset[str]
    records: dict[str, FileRecord] = field(default_factory=dict)
    unrecorded: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    left_out: dict[str, bytes] = field(default_factory=dict)

    def excluded(self, shard: str) -> np.ndarray | None:
        """Return which rows of a shard's index are excluded, bool (rows,), or None if none is."""
        bits = self.left_out.get(shard)
        if bits is None:
            return None
        packed = np.frombuffer(bits, np.uint8)
        return np.unpackbits(packed, count=self.rows[shard]).astype(bool)

    def of(self, shards: Sequence[str]) -> "Parts":
        """Return the entries for `shards`."""
        parts = [f"{folder}/{shard}" for shard in shards for folder in self.folders]
        files = [f"{part}.parquet" for part in parts]
        return Parts(
            self.digests,
            {shard: self.rows[shard] for shard in shards},
            self.whole.intersection(shards),
            self.following,
            {name: self.records[name] for name in files if name in self.records},
            {part: self.unrecorded[part] for part in parts if part in self.unrecorded},
            {part: self.fingerprints[part] for part in parts if part in self.fingerprints},
            self.folders,
            {shard: self.left_out[shard] for shard in shards if shard in self.left_out},
        )

    def pinned(self, store: Store) -> PinnedParts:
        """Return a view for readers of single files; parts not checked here resolve to their
        current state."""
        return PinnedParts(
            lambda part: self.fingerprints.get(part) or store.fingerprint(part),
            lambda name: self.records.get(name) or store.record(name),
        )


def check_parts(store: Store, shards: Sequence[Shard], folders: set[str]) -> Parts:
    """Read the markers of these shards' parts in these folders (see columns.folders_of).

    Raises UserError if a shard's part is missing, or if scores or rewritten texts were computed
    from captions that have been rewritten since.
    """
    texts = {texts_folder(one.rpartition("/")[2]) for one in folders if is_of_scores(one)}
    with store.listed(folders | texts):
        return _check(store, shards, folders)


def refuse_rewritten(store: Store, parts: Parts, referred: Collection[str] = ()) -> None:
    """Raise UserError if a part was rewritten after check_parts read its marker.

    This covers the folders `referred` that the result refers to, and the parts whose digest is not
    compared when they are read.
    """
    tops = tuple(f"{folder}/" for folder in referred)
    known = {part: one for part, one in parts.fingerprints.items() if part.startswith(tops)}
    with store.listed(referred):
        for part, fingerprint in (known | parts.unrecorded).items():
            if store.fingerprint(part) != fingerprint:
                raise UserError(
                    f"{store.path(part)} was rewritten while it was being read. Rerun the command."
                )


def _check(store: Store, shards: Sequence[Shard], folders: set[str]) -> Parts:
    digests: dict[str, str] = {}
    rows: dict[str, int] = {}
    whole, following = set(), set(folders)
    of_part: dict[str, str] = {}
    written: dict[str, str | None] = {}
    settings: dict[str, dict[str, Any]] = {}
    records: dict[str, FileRecord] = {}
    unrecorded: dict[str, str] = {}
    for folder in sorted(folders, key=is_of_scores):
        for shard in shards:
            part = f"{folder}/{shard.name}"
            digest, marker = _marker(store, shards, folder, shard.name)
            of_part[part] = digest
            records |= marker.files
            if not marker.files or not all(map(store.compares, marker.files.values())):
                unrecorded[part] = digest
            if folder == SAMPLES:
                rows[shard.name] = marker.rows_in
                if marker.counts.ok == marker.rows_in:
                    whole.add(shard.name)
            if folder.startswith(ANNOTATIONS):
                written.setdefault(folder, marker.config.get("values"))
                if marker.config.get("values") != written[folder]:
                    method = marker.config.get("method", "METHOD")
                    again = annotate_command(folder.partition("/")[2], method)
                    raise UserError(
                        f"{store.path(folder)} contains parts from two runs; rerun `{again}`"
                    )
            _refuse_two_settings(store, folder, shard.name, marker.config, settings)
            _refuse_old_inputs(store, folder, shard.name, marker)
            if not _follows(store, folder, shard.name, marker, of_part):
                following.discard(folder)
        parts = ((shard.name, of_part[f"{folder}/{shard.name}"]) for shard in shards)
        digests[folder] = folder_digest(parts)
    rows = {shard.name: rows[shard.name] for shard in shards}
    scored = (one.rpartition("/")[2] for one in folders if is_of_scores(one))
    return Parts(
        digests,
        rows,
        frozenset(whole),
        frozenset(following),
        records,
        unrecorded,
        of_part,
        tuple(sorted({*folders, *map(texts_folder, scored)})),
    )


def is_of_scores(folder: str) -> bool:
    """Return whether the parts of a folder are scores."""
    return folder.startswith(f"{SCORES}/")


def _refuse_two_settings(
    store: Store,
    folder: str,
    shard: str,
    config: dict[str, Any],
    settings: dict[str, dict[str, Any]],
) -> None:
    """Raise UserError if parts of captions or scores have different settings, for example after an
    interrupted `--force` run. `settings` collects the settings of each folder's first part."""
    defaults = DEFAULTS.get(folder.partition("/")[0])
    if INPUT_SOURCES in config:
        defaults = {}  # rewriters have other defaults than captioners, and record every setting
    if defaults is None:
        return
    changed = changes(settings.setdefault(folder, config), config, defaults)
    if changed:
        force = "" if is_of_scores(folder) else " with --force"
        raise UserError(
            f"{store.path(folder)} contains parts with different settings: shard {shard} has "
            f"{'; '.join(changed)}. Rerun the command that wrote them{force}."
        )


def _refuse_old_inputs(store: Store, folder: str, shard: str, marker: Marker) -> None:
    """Raise UserError if a part of texts was made from captions that have been rewritten since.

    Captions that were removed are not missed.
    """
    if not folder.startswith(f"{CAPTIONS}/"):
        return
    for texts, made_from in marker.inputs.items():
        if not texts.startswith(f"{CAPTIONS}/"):
            continue
        now = store.fingerprint(f"{texts}/{shard}")
        if now and now != made_from:
            raise UserError(
                f"{store.path(folder)}: the texts of shard {shard} in {texts} were written again "
                f"after these were made from them. Rerun {how_to_write(folder, marker.config)}."
            )


def folder_digest(parts: Iterable[tuple[str, str]]) -> str:
    """Return the digest of a folder, 32 hex digits: a hash of each shard's name and its part's
    fingerprint, in order."""
    total = hashlib.sha256()
    for shard, digest in parts:
        total.update(f"{shard} {digest}\n".encode())
    return total.hexdigest()[:32]


def shard_batches(rows: Mapping[str, int], at_once: int) -> list[list[str]]:
    """Group shards, in pool order, into batches of at least `at_once` rows.

    Batches do not depend on cores or memory, because they are the row groups of a subset.
    """
    batches: list[list[str]] = [[]]
    waiting = 0
    for shard, count in rows.items():
        batches[-1].append(shard)
        waiting += count
        if waiting >= at_once:
            batches.append([])
            waiting = 0
    return [batch for batch in batches if batch]


def _marker(store: Store, shards: Sequence[Shard], folder: str, shard: str) -> tuple[str, Marker]:
    """Return a part's fingerprint and marker. Raises UserError if the marker is missing or
    damaged."""
    part = f"{folder}/{shard}"
    with contextlib.suppress(OSError):
        digest, marker = store.fingerprint_and_marker(part)
        if marker is not None:
            return digest, marker
        if digest:
            raise UserError(
                f"{store.path(folder)}: the marker of shard {shard} is damaged. Rerun the command "
                "that wrote it."
            )
    done = set(store.parts(folder)) - {part}
    absent = [s.name for s in shards if f"{folder}/{s.name}" not in done]
    other = store.read_marker(min(done)) if done else None
    command = how_to_write(folder, other.config if other else None)
    raise UserError(
        f"{store.path(folder)}: no finished part for shard {shard} ({len(absent)} of "
        f"{len(shards)} missing). Run {command} first."
    )


def _follows(
    store: Store, folder: str, shard: str, marker: Marker, of_part: dict[str, str]
) -> bool:
    """Return whether a part of scores was computed from the current part of its texts.

    Raises UserError if it was computed from an older one.
    """
    if not is_of_scores(folder):
        return False
    texts = texts_folder(folder.rpartition("/")[2])
    made_from = marker.inputs.get(texts)
    if made_from is None:
        return False
    now = of_part.get(f"{texts}/{shard}") or store.fingerprint(f"{texts}/{shard}")
    of_part[f"{texts}/{shard}"] = now
    if now and made_from != now:
        raise UserError(
            f"{store.path(folder)}: the texts of shard {shard} in {texts} were rewritten after it "
            "was scored. Rerun `capmix score`."
        )
    return made_from == now
