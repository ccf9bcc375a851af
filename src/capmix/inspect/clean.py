"""Remove leftovers, or named subsets and sources, from a work directory.

Markers are removed before files, and markers of dependents before those of their inputs. If the
process is killed between two steps, each part is either complete or counts as missing. Only files
of the work directory's layout (storage/layout.py) are removed.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from capmix.engine.others import announced, runs_at_work
from capmix.engine.partial import place_of, shard_digest
from capmix.errors import UserError
from capmix.inspect.status import is_stale
from capmix.pool import Pool
from capmix.settings.base import did_you_mean
from capmix.settings.counted import counted
from capmix.settings.tables import size_text, table_lines
from capmix.storage.commands import DEPTHS, stage_folder
from capmix.storage.layout import (
    ANNOTATIONS,
    ARRAYS,
    CAPTIONS,
    CARRIED,
    EDITS,
    EMBEDDINGS,
    FIELDS,
    MARKERS,
    MATCHES,
    MEASURES,
    METADATA,
    PARTIAL,
    PROBE_RESULTS,
    PROBES,
    RAW,
    SAMPLES,
    SCORES,
    SUBSETS,
    TUNES,
    captions_folder,
)
from capmix.storage.store import Store
from capmix.storage.temporary import clock_of, is_abandoned, is_temporary, remove_temporary
from capmix.view.journal import Journal
from capmix.view.samples import base_source

OF_A_SHARD = (".parquet", ".npy")
MADE_FROM_TEXTS = (SUBSETS, MEASURES, ANNOTATIONS, MATCHES)  # dependents first


@dataclass(frozen=True)
class Removal:
    """Finished `parts` and `files` to be removed together; `about` says what they are."""

    about: str
    parts: Sequence[str] = ()
    files: Sequence[str] = ()
    bytes: int = 0


@dataclass(frozen=True)
class Cleaned:
    """What `clean` removed or, if not `is_done`, would remove."""

    work: str
    removals: Sequence[Removal] = field(default_factory=list)
    is_done: bool = False
    notes: Sequence[str] = ()

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(one.bytes for one in self.removals)

    def lines(self) -> list[str]:
        """Return a human-readable table."""
        if not self.removals:
            return [f"work {self.work}", "nothing to remove"]
        heads = ("what", "parts", "files", "size")
        rows = [
            [one.about, f"{len(one.parts):,}", f"{len(one.files):,}", size_text(one.bytes)]
            for one in self.removals
        ]
        total = size_text(self.bytes)
        end = f"removed {total}" if self.is_done else f"would remove {total}; rerun with --yes"
        return [f"work {self.work}", *table_lines(heads, rows), *self.notes, end]


def clean(
    pool: Pool,
    store: Store,
    subsets: Sequence[str] = (),
    sources: Sequence[str] = (),
    yes: bool = False,
) -> Cleaned:
    """Find removable files and, with `yes`, remove them.

    If any `subsets` or `sources` are named, these are removed, with everything derived from the
    sources; otherwise leftovers are removed. Leftovers are temporary files of dead processes; parts
    whose inputs have changed (except captions, which are expensive and mostly reused by the next
    run); scores of sources that no longer exist; index, embeddings and unfinished captions of
    shards that no longer exist; and copies of scores that no longer exist. Raises UserError for an
    unknown name, and if another run is using the work directory.
    """
    here = _WorkDirectory(pool, store)
    _refuse_others(here)
    found = _named(here, subsets, sources) if subsets or sources else _leftovers(here)
    removals = [one for one in found if one.parts or one.files]
    if yes and removals:
        with announced(store) as others:
            if others:
                raise UserError(_busy(store, others))
            _remove(store, removals)
    return Cleaned(store.location, removals, yes, _edits_of(store, sources))


def _edits_of(store: Store, sources: Sequence[str]) -> list[str]:
    """Return a note per source about the edits based on its texts, which are kept."""
    found = []
    for edits in store.folders(EDITS) if sources and store.is_local else []:
        journal = Journal(store.path(f"{EDITS}/{edits}"), is_read_only=True)
        bases = Counter(
            base_source(review.base, sources)
            for shard in journal.shards()
            for review in journal.reviews(shard).values()
            if review.base
        )
        found += [
            f"{counted(bases[one], 'edit')} in {EDITS}/{edits} based on {one} kept; "
            f"`capmix view --fold --source {edits}` rewrites their parts"
            for one in sources
            if bases[one]
        ]
    return found


class _WorkDirectory:
    """The files of a work directory, with their sizes, and its finished parts."""

    def __init__(self, pool: Pool, store: Store):
        self.pool, self.store = pool, store
        found = store.fs.find(store.root, detail=True)
        self.sizes = {path[len(store.root) + 1 :]: one["size"] for path, one in found.items()}
        self.parts = store.parts("")
        self._known = frozenset(self.parts)

    @property
    def partial(self) -> list[str]:
        """Files of partial parts."""
        return [name for name in self.sizes if name.startswith(f"{PARTIAL}/")]

    def is_part(self, name: str) -> bool:
        return name in self._known

    def below(self, folder: str) -> list[str]:
        """Return the finished parts below a folder."""
        return [part for part in self.parts if part.startswith(f"{folder}/")]

    def files_of(self, part: str) -> list[str]:
        """Return the existing files of a part and copies of them.

        Names from the marker are untrusted: only those that can belong to the part are used.
        """
        marker = self.store.read_marker(part)
        names = {f"{part}{suffix}" for suffix in OF_A_SHARD} | {f"{ARRAYS}/{part}"}
        names |= {f"{MEASURES}/sample.parquet"} if part.startswith(f"{MEASURES}/") else set()
        names |= {one for one in (marker.files if marker else ()) if _is_of(one, part)}
        return sorted(name for name in names if name in self.sizes)

    def removal(self, about: str, parts: Iterable[str], files: Iterable[str] = ()) -> Removal:
        parts = list(parts)
        names = list(
            dict.fromkeys([*files, *(name for one in parts for name in self.files_of(one))])
        )
        finished = [part for part in parts if self.is_part(part)]
        return Removal(about, finished, names, sum(self.sizes[name] for name in names))


def _is_of(file: str, part: str) -> bool:
    """Return whether a file can belong to a part: it must be in the same top folder and have
    the same name."""
    top, name = part.partition("/")[0], part.rpartition("/")[2]
    places = file.split("/")
    return places[0] == top and ".." not in places and places[-1].startswith(f"{name}.")


def _leftovers(here: _WorkDirectory) -> list[Removal]:
    found = [here.removal("temporary files of dead processes", [], _abandoned(here))]
    shards = {shard.name: shard for shard in here.pool.shards}
    stale: dict[str, list[str]] = {}
    gone: dict[str, list[str]] = {}
    with here.store.listed([*DEPTHS]):
        for part in here.parts:
            folder = stage_folder(part)
            if folder.split("/")[0] not in DEPTHS:
                continue
            shard = shards.get(part[len(folder) + 1 :])
            top = folder.split("/")[0]
            if shard is None and top in (SAMPLES, FIELDS, EMBEDDINGS):
                gone.setdefault(folder, []).append(part)
            marker = here.store.read_marker(part)
            if top == CAPTIONS:  # the next run reuses captions of unchanged images
                continue
            if shard is not None and marker and is_stale(here.store, shard, marker):
                stale.setdefault(folder, []).append(part)
    sources = {RAW, *here.store.folders(CAPTIONS)}
    for scorer in here.store.folders(SCORES):
        for source in here.store.folders(f"{SCORES}/{scorer}"):
            folder = f"{SCORES}/{scorer}/{source}"
            if source not in sources:
                stale.pop(folder, None)
                found.append(_whole_folder(here, f"{folder}: captions no longer exist", folder))
    found += [here.removal(f"{one}: inputs have changed", parts) for one, parts in stale.items()]
    found += [
        here.removal(f"{one}: shards no longer in the pool", parts) for one, parts in gone.items()
    ]
    taken = {name for one in found for name in one.files}
    copies = [
        name
        for name in here.sizes
        if name.startswith(f"{ARRAYS}/{SCORES}/")
        and not here.is_part(name.partition("/")[2])
        and name not in taken
    ]
    found.append(here.removal("copies of scores that no longer exist", [], copies))
    digests = {shard_digest(shard.name) for shard in here.pool.shards}
    unfinished = [name for name in here.partial if place_of(name)[1] not in digests]
    about = "unfinished captions of shards no longer in the pool"
    return [*found, here.removal(about, [], unfinished)]


def _named(here: _WorkDirectory, subsets: Sequence[str], sources: Sequence[str]) -> list[Removal]:
    have = [part.partition("/")[2] for part in here.below(SUBSETS)]
    for name in subsets:
        if name not in have:
            raise UserError(f"clean: no subset {name!r}{did_you_mean(name, have)}")
    folders = [folder for source in sources for folder in _folders_of(here, source)]
    made_from = _dependents(here, folders)
    chosen = [f"{SUBSETS}/{name}" for name in subsets]
    chosen += [part for part in made_from if part not in chosen]
    found = []
    for part in chosen:
        name = part.partition("/")[2]
        probes = [*here.below(f"{PROBE_RESULTS}/{name}"), *here.below(f"{PROBES}/{name}")]
        probes += [one for one in here.below(TUNES) if one.split("/")[3:4] == [name]]
        of_subset = probes if part.startswith(f"{SUBSETS}/") else []
        why = "" if name in subsets else f", derived from {', '.join(sources)}"
        found.append(here.removal(f"{part}{why}", [*of_subset, part]))
    # Captions are removed last, since everything else is derived from them.
    found += [_whole_folder(here, folder, folder) for folder in folders]
    names = [f"{CARRIED}/{source}.parquet" for source in sources]
    moved = [name for name in names if name in here.sizes]
    return [*found, here.removal("captions carried over by an unfinished run", [], moved)]


def _folders_of(here: _WorkDirectory, source: str) -> list[str]:
    """Return the folders of a source's scores and captions. Raises UserError if there are none."""
    if source == RAW:
        raise UserError("clean: raw is the pool's own text and cannot be removed")
    scores = [f"{SCORES}/{one}/{source}" for one in here.store.folders(SCORES)]
    folders = [*scores, captions_folder(source)]
    places = {place_of(name)[0] for name in here.partial}
    found = [
        one
        for one in folders
        if one in places or any(name.startswith(f"{one}/") for name in here.sizes)
    ]
    found += [one for one in folders if one not in found and here.below(one)]
    if not found:
        hint = did_you_mean(source, here.store.folders(CAPTIONS))
        raise UserError(f"clean: no source {source!r}{hint}")
    return [one for one in folders if one in found]


def _dependents(here: _WorkDirectory, folders: Sequence[str]) -> list[str]:
    """Return the parts derived from the texts or scores in these folders."""
    found = []
    for top in MADE_FROM_TEXTS:
        for part in here.below(top):
            marker = here.store.read_marker(part)
            if marker is not None and _uses(marker.inputs, folders):
                found.append(part)
    matched = dict.fromkeys(part.split("/")[1] for part in found if part.startswith(f"{MATCHES}/"))
    lists = [part for name in matched for part in here.below(f"{METADATA}/{name}")]
    return [*found, *lists]


def _uses(inputs: Mapping[str, str], folders: Sequence[str]) -> bool:
    return any(stage_folder(name) in folders for name in inputs)


def _whole_folder(here: _WorkDirectory, about: str, folder: str) -> Removal:
    """Return all parts of a stage, including files of shards without markers, and partial parts."""
    parts = dict.fromkeys([*here.below(folder), *(f"{folder}/{s.name}" for s in here.pool.shards)])
    return here.removal(about, parts, [n for n in here.partial if place_of(n)[0] == folder])


def _abandoned(here: _WorkDirectory) -> list[str]:
    return [name for name, is_dead in _temporary(here).items() if is_dead]


def _temporary(here: _WorkDirectory) -> dict[str, bool]:
    """Return the temporary files, and whether the process that created each has ended."""
    store = here.store
    if not store.is_local:
        return {}
    found = {name: _temporary_of(name) for name in here.sizes if _temporary_of(name)}
    now = clock_of(store.root) if found else 0.0
    return {name: is_abandoned(store.path(temporary), now) for name, temporary in found.items()}


def _temporary_of(name: str) -> str:
    """Return the temporary file or folder that a file is or is in; "" for other files."""
    places = name.split("/")
    at = next((i for i, one in enumerate(places) if is_temporary(one)), None)
    return "" if at is None else "/".join(places[: at + 1])


def _refuse_others(here: _WorkDirectory) -> None:
    others = runs_at_work(here.store)
    writing = [name for name, is_dead in _temporary(here).items() if not is_dead]
    if others or writing:
        raise UserError(_busy(here.store, others or [f"it is writing {writing[0]}"]))


def _busy(store: Store, others: Sequence[str]) -> str:
    return (
        f"clean: another capmix process is using {store.location} ({', '.join(others)}); wait "
        "until it exits"
    )


def _remove(store: Store, removals: Sequence[Removal]) -> None:
    for one in removals:
        for part in one.parts:
            with store.locked(part):
                store.remove_marker(part)
    for one in removals:
        for name in one.files:
            temporary = _temporary_of(name)
            if temporary:
                remove_temporary(store.path(temporary))
            else:
                store.remove(name)
    if store.is_local:
        names = [name for one in removals for name in one.files]
        names += [f"{MARKERS}/{part}" for one in removals for part in one.parts]
        _remove_empty(store.root, {os.path.dirname(name) for name in names})


def _remove_empty(root: str, folders: Iterable[str]) -> None:
    """Remove folders that are now empty, and parent folders that become empty."""
    for folder in sorted(folders, key=len, reverse=True):
        while folder:
            with suppress(OSError):
                os.rmdir(f"{root}/{folder}")
            if os.path.exists(f"{root}/{folder}"):
                break
            folder = os.path.dirname(folder)
