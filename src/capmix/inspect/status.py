"""How far each stage of a work directory has come: parts done, missing and stale, rows, bytes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from capmix.pool import Pool, Shard
from capmix.settings.tables import table_lines
from capmix.storage.layout import ANNOTATIONS, CAPTIONS, EMBEDDINGS, SAMPLES, SCORES, SUBSETS
from capmix.storage.store import Marker, Store


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
        heads = ("stage", "done", "missing", "stale", "ok", "dropped", "failed", "bytes")
        rows = [
            [one.stage, *(f"{getattr(one, name):,}" for name in heads[1:])] for one in self.stages
        ]
        about = [f"pool {self.pool}, {self.shards:,} shards", f"work {self.work}"]
        return [*about, *table_lines(heads, rows)]


def status(pool: Pool, store: Store) -> Status:
    """Read the markers of every stage. Nothing is recomputed or written."""
    tops = (SAMPLES, EMBEDDINGS, CAPTIONS, SCORES, ANNOTATIONS)
    with store.listed([*tops, SUBSETS]):
        parts = {top: store.parts(top) for top in (*tops, SUBSETS)}
        markers = {one: store.read_marker(one) for found in parts.values() for one in found}
        stages = []
        for top in tops:
            folders = dict.fromkeys(_folder(part, pool.shards) for part in parts[top])
            for folder in [SAMPLES] if top == SAMPLES else [one for one in folders if one]:
                stages.append(_stage(store, folder, pool.shards, markers))
        for part in parts[SUBSETS]:
            stages.append(_subset(store, part, markers))
    return Status(pool.location, store.location, len(pool.shards), stages)


def _folder(part: str, shards: list[Shard]) -> str:
    """The stage's folder of a part, whose shard may have slashes in its name."""
    return next((part[: -len(s.name) - 1] for s in shards if part.endswith(f"/{s.name}")), "")


def _stage(
    store: Store, folder: str, shards: list[Shard], markers: Mapping[str, Marker | None]
) -> StageStatus:
    found = StageStatus(folder)
    for shard in shards:
        marker = markers.get(f"{folder}/{shard.name}")
        if marker is None or not _is_whole(store, marker):
            found.missing += 1
            continue
        _add(found, marker)
        if _is_stale(store, shard, marker):
            found.stale += 1
        else:
            found.done += 1
    return found


def _subset(store: Store, part: str, markers: Mapping[str, Marker | None]) -> StageStatus:
    found = StageStatus(part)
    marker = markers[part]
    if marker is None or store.size(f"{part}.parquet") < 0:
        found.missing = 1
        return found
    found.done = 1
    _add(found, marker)
    found.bytes = max(0, store.size(f"{part}.parquet")) + max(0, store.size(f"{part}.npy"))
    return found


def _add(found: StageStatus, marker: Marker) -> None:
    found.ok += marker.counts.ok
    found.dropped += marker.counts.dropped.total()
    found.failed += marker.counts.failed.total()
    found.reasons.update(marker.counts.dropped + marker.counts.failed)
    found.bytes += sum(marker.files.values())
    found.settings = found.settings or marker.config


def _is_whole(store: Store, marker: Marker) -> bool:
    return all(store.size(name) == size for name, size in marker.files.items())


def _is_stale(store: Store, shard: Shard, marker: Marker) -> bool:
    """Whether an input is another one now: the pool's shard, or the part of another stage."""
    for name, made_from in marker.inputs.items():
        if name == "pool":
            now = shard.fingerprint
        else:
            whole = name if name.endswith(f"/{shard.name}") else f"{name}/{shard.name}"
            now = store.fingerprint(whole)
        if now != made_from:
            return True
    return False
