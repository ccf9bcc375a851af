"""Report the state of a work directory: finished, missing and stale parts of each stage, active
processes, disk usage, and the next command."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from capmix.engine.others import runs_at_work
from capmix.mix.columns import FIELD, with_fields
from capmix.mix.kinds import common_types
from capmix.mix.parts import folder_digest
from capmix.pool import Pool, Shard
from capmix.pool.selection import SELECTED
from capmix.settings.counted import counted
from capmix.settings.tables import size_text, table_html, table_lines
from capmix.storage.commands import DEPTHS, command_of, stage_folder
from capmix.storage.layout import (
    CAPTIONS,
    EMBEDDINGS,
    FIELDS,
    SAMPLES,
    SCORES,
    SUBSETS,
)
from capmix.storage.marker import Marker
from capmix.storage.store import Store

HEADS = ("stage", "done", "missing", "stale", "ok", "dropped", "failed", "bytes")
WITH_OTHERS = (SAMPLES, FIELDS, EMBEDDINGS)  # written by the commands that need them
LARGEST = 6  # number of folders listed with their sizes
FIELDS_SHOWN = 60


@dataclass
class StageStatus:
    """One folder of parts.

    `done`, `missing` and `stale` count parts (one per shard; a subset is one part). A stale part's
    inputs have changed since it was written. `ok`, `dropped` and `failed` count rows of existing
    parts; `bytes` is the size of their files. `settings` are the settings of the first part.
    """

    stage: str
    done: int = 0
    missing: int = 0
    stale: int = 0
    ok: int = 0
    dropped: int = 0
    failed: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """All stages of a work directory, in dependency order.

    `fields` maps the fields of the samples' JSON to SQL types. `running` lists the active
    processes, `disk` maps each top-level folder to its size in bytes, and `next` is the next
    command line to run, or "" if nothing is left to do or a run is active.
    """

    pool: str
    work: str
    shards: int
    stages: list[StageStatus]
    fields: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    disk: dict[str, int] = field(default_factory=dict)
    next: str = ""

    def __getitem__(self, stage: str) -> StageStatus:
        """Return the stage of a folder, for example captions/blip2. Raises KeyError."""
        for one in self.stages:
            if one.stage == stage:
                return one
        raise KeyError(stage)

    def to_table(self) -> pa.Table:
        """Return one row per stage, without settings and reasons."""
        rows = [asdict(one) for one in self.stages]
        return pa.Table.from_pylist(
            [{k: v for k, v in row.items() if k not in ("settings", "reasons")} for row in rows]
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        stages = [vars(one) | {"reasons": dict(one.reasons)} for one in self.stages]
        return vars(self) | {"stages": stages}

    def lines(self) -> list[str]:
        """Return a human-readable table."""
        about = [f"pool {self.pool}, {counted(self.shards, 'shard')}", f"work {self.work}"]
        table = table_lines(HEADS, self._rows())
        return [*about, *table, *self._fields(), "", *self._notes()]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        title = f"pool {self.pool}, {counted(self.shards, 'shard')}; work {self.work}"
        return table_html(HEADS, self._rows(), title=title)

    def _rows(self) -> list[list[str]]:
        return [
            [one.stage, *(f"{getattr(one, name):,}" for name in HEADS[1:])] for one in self.stages
        ]

    def _fields(self) -> list[str]:
        alone = with_fields({}, self.fields)
        types = list(self.fields.items())[:FIELDS_SHOWN]
        named = [f"{one if one in alone else FIELD + one} {type_}" for one, type_ in types]
        more = len(self.fields) - len(named)
        named += [f"{more:,} more"] if more else []
        return [f"fields for recipes: {', '.join(named)}"] if named else []

    def _notes(self) -> list[str]:
        largest = sorted(self.disk.items(), key=lambda one: (-one[1], one[0]))[:LARGEST]
        shares = ", ".join(f"{name} {size_text(size)}" for name, size in largest)
        total = size_text(sum(self.disk.values()))
        at_work = ", ".join(self.running) or "none"
        failed = [one for one in self.stages if one.failed]
        notes = [f"running: {at_work}", f"disk: {total} ({shares})"]
        if failed:
            notes.append(f"failures: capmix failures --work {shlex.quote(self.work)}")
        return [*notes, f"next: {self.next}"] if self.next else notes


def status(pool: Pool, store: Store) -> Status:
    """Return the state of every stage by reading markers. Nothing is recomputed or written."""
    with store.listed([*DEPTHS, SUBSETS]):
        parts = {top: store.parts(top) for top in (*DEPTHS, SUBSETS)}
        markers = {one: store.read_marker(one) for found in parts.values() for one in found}
        stages = [
            _stage(store, folder, pool.shards, markers)
            for top in DEPTHS
            for folder in _folders(store, top, parts[top])
            if top != FIELDS or parts[top]
        ]
        digest = cache(lambda folder: _digest(store, folder, pool.shards))
        stages += [_subset(store, part, markers[part], digest) for part in parts[SUBSETS]]
    types = common_types(markers.get(f"{FIELDS}/{one.name}") for one in pool.shards)
    running = runs_at_work(store)
    following = "" if running else next_command(store, stages, pool.has_images)
    return Status(
        pool.location,
        store.location,
        len(pool.shards),
        stages,
        types,
        running,
        _disk(store),
        following,
    )


def _disk(store: Store) -> dict[str, int]:
    """Return the total file size in bytes by top-level folder or file name."""
    found: Counter[str] = Counter()
    for path, about in store.fs.find(store.root, detail=True).items():
        found[path[len(store.root) + 1 :].partition("/")[0]] += about["size"]
    return dict(found)


def next_command(store: Store, stages: Sequence[StageStatus], has_images: bool) -> str:
    """Return the command line that computes the first missing or stale stage, else the next step.

    Returns "" if there is none.
    """
    work = f" --work {shlex.quote(store.location)}"
    for one in stages:
        if (one.missing or one.stale) and one.stage.partition("/")[0] not in WITH_OTHERS:
            return command_of(one.stage, one.settings, store.location)
    tops = [one.stage.split("/")[0] for one in stages]
    if not has_images:
        return f"capmix mix{work} --recipe raw" if SUBSETS not in tops else ""
    if CAPTIONS not in tops:
        return f"capmix caption{work} --source NAME --model MODEL"
    if SCORES not in tops:
        return f"capmix score{work}"
    if SUBSETS not in tops:
        return f"capmix mix{work} --recipe raw-top"
    subset = next(one.stage for one in stages if one.stage.startswith(SUBSETS))
    name = shlex.quote(subset.partition("/")[2])
    return f"capmix export{work} --subset {name} --out DIR"


def _folders(store: Store, top: str, parts: Sequence[str]) -> list[str]:
    """Return the stage folders at or below `top`, including those that have only markers."""
    found = [top]
    for _ in range(DEPTHS[top]):
        found = [f"{one}/{name}" for one in found for name in store.folders(one)]
    return sorted(
        {*found, *(stage_folder(part) for part in parts if part.count("/") > DEPTHS[top])}
    )


def _digest(store: Store, folder: str, shards: Sequence[Shard]) -> str:
    """Return a folder's current digest, for comparison with the one in a subset's inputs."""
    return folder_digest((one.name, store.fingerprint(f"{folder}/{one.name}")) for one in shards)


def _stage(
    store: Store, folder: str, shards: list[Shard], markers: Mapping[str, Marker | None]
) -> StageStatus:
    found = StageStatus(folder)
    for shard in shards:
        marker = markers.get(f"{folder}/{shard.name}")
        if marker is None or not store.has_sizes(marker):
            found.missing += 1
            continue
        _add(found, marker)
        if is_stale(store, shard, marker):
            found.stale += 1
        else:
            found.done += 1
    return found


def _subset(
    store: Store, part: str, marker: Marker | None, digest: Callable[[str], str]
) -> StageStatus:
    """Return the status of a subset; `digest` computes a folder's current digest.

    A changed uid list is not detected: the marker has the list's digest but not its path.
    """
    found = StageStatus(part)
    size = store.size(f"{part}.parquet")
    if marker is None or size < 0 or not store.has_sizes(marker):
        found.missing = 1
        return found
    folders = {name: made for name, made in marker.inputs.items() if name.split("/")[0] in DEPTHS}
    found.stale = int(any(digest(name) != made for name, made in folders.items()))
    found.done = 1 - found.stale
    _add(found, marker)
    found.bytes = found.bytes or size  # markers of capmix 0.1 name no files
    return found


def _add(found: StageStatus, marker: Marker) -> None:
    found.ok += marker.counts.ok
    found.dropped += marker.counts.dropped.total()
    found.failed += marker.counts.failed.total()
    found.reasons.update(marker.counts.dropped + marker.counts.failed)
    found.bytes += marker.bytes
    found.settings = found.settings or marker.config


def is_stale(store: Store, shard: Shard, marker: Marker) -> bool:
    """Return whether an input of a part has changed: the pool's shard, or another stage's part.

    Inputs are named by the part's full name or by its folder only.
    """
    for name, made_from in marker.inputs.items():
        if name == SELECTED:
            continue
        if name == "pool":
            now = shard.fingerprint
        else:
            now = store.fingerprint(f"{stage_folder(name)}/{shard.name}")
        if now != made_from:
            return True
    return False
