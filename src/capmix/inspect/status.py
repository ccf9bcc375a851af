"""How far each stage of a work directory has come: parts done, missing and stale, rows, bytes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from capmix.mix.parts import folder_digest
from capmix.pool import Pool, Shard
from capmix.pool.selection import SELECTED
from capmix.settings.tables import table_html, table_lines
from capmix.storage.layout import ANNOTATIONS, CAPTIONS, EMBEDDINGS, SAMPLES, SCORES, SUBSETS
from capmix.storage.marker import Marker
from capmix.storage.store import Store

HEADS = ("stage", "done", "missing", "stale", "ok", "dropped", "failed", "bytes")
# By the first folder of a part's name: how many folders below it a stage's folder is. The rest of
# the name is the shard's, which may have slashes of its own.
DEPTHS = {SAMPLES: 0, EMBEDDINGS: 2, CAPTIONS: 1, SCORES: 2, ANNOTATIONS: 1}


@dataclass
class StageStatus:
    """One folder of parts. `done`, `missing` and `stale` count parts (one per shard; a subset is
    one part); a stale part was made from inputs that have changed since. `ok`, `dropped` and
    `failed` count rows of the parts that exist, `bytes` their files. `settings` are those of the
    first part."""

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
    """Every stage of a work directory, in the order in which they depend on each other."""

    pool: str
    work: str
    shards: int
    stages: list[StageStatus]

    def __getitem__(self, stage: str) -> StageStatus:
        """The stage of a folder, such as captions/blip2. Raises KeyError."""
        for one in self.stages:
            if one.stage == stage:
                return one
        raise KeyError(stage)

    def to_table(self) -> pa.Table:
        """A row per stage, without settings and reasons."""
        rows = [asdict(one) for one in self.stages]
        return pa.Table.from_pylist(
            [{k: v for k, v in row.items() if k not in ("settings", "reasons")} for row in rows]
        )

    def lines(self) -> list[str]:
        """A table for people."""
        about = [f"pool {self.pool}, {self.shards:,} shards", f"work {self.work}"]
        return [*about, *table_lines(HEADS, self._rows())]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        title = f"pool {self.pool}, {self.shards:,} shards; work {self.work}"
        return table_html(HEADS, self._rows(), title=title)

    def _rows(self) -> list[list[str]]:
        return [
            [one.stage, *(f"{getattr(one, name):,}" for name in HEADS[1:])] for one in self.stages
        ]


def status(pool: Pool, store: Store) -> Status:
    """Read the markers of every stage. Nothing is recomputed or written."""
    with store.listed([*DEPTHS, SUBSETS]):
        parts = {top: store.parts(top) for top in (*DEPTHS, SUBSETS)}
        markers = {one: store.read_marker(one) for found in parts.values() for one in found}
        stages = [
            _stage(store, folder, pool.shards, markers)
            for top in DEPTHS
            for folder in _folders(store, top, parts[top])
        ]
        digest = cache(lambda folder: _digest(store, folder, pool.shards))
        stages += [_subset(store, part, markers[part], digest) for part in parts[SUBSETS]]
    return Status(pool.location, store.location, len(pool.shards), stages)


def _folders(store: Store, top: str, parts: Sequence[str]) -> list[str]:
    """The stages' folders at or below `top`: those that are there, and those of markers alone."""
    found = [top]
    for _ in range(DEPTHS[top]):
        found = [f"{one}/{name}" for one in found for name in store.folders(one)]
    return sorted({*found, *(_folder(part) for part in parts if part.count("/") > DEPTHS[top])})


def _folder(name: str) -> str:
    """The stage's folder of a part; a stage's folder is its own."""
    names = name.split("/")
    return "/".join(names[: DEPTHS.get(names[0], 0) + 1])


def _digest(store: Store, folder: str, shards: Sequence[Shard]) -> str:
    """The folder's digest now, to compare with the one in a subset's inputs."""
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
        if _is_stale(store, shard, marker):
            found.stale += 1
        else:
            found.done += 1
    return found


def _subset(
    store: Store, part: str, marker: Marker | None, digest: Callable[[str], str]
) -> StageStatus:
    """`digest` is that of a folder as it is now. A uid list may have changed unnoticed: its
    marker has the digest of the list, and not where it was."""
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


def _is_stale(store: Store, shard: Shard, marker: Marker) -> bool:
    """Whether an input is another one now: the pool's shard, or the part of another stage, which
    is named by its folder or in full."""
    for name, made_from in marker.inputs.items():
        if name == SELECTED:
            continue
        if name == "pool":
            now = shard.fingerprint
        else:
            now = store.fingerprint(f"{_folder(name)}/{shard.name}")
        if now != made_from:
            return True
    return False
