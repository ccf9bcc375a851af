"""What an engine runs: a stage, and one shard of it.

An engine calls `run_one` for every shard that `missing` names, in whatever process or machine it
likes. It never sees images or captions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.pool import Shard
from capmix.store import Counts, Marker, Store

OnCount = Callable[[Counts], None]


class PartWriter:
    """Where a stage puts one shard's part, and where it counts every row in and out."""

    def __init__(self, store: Store, part: str, on_count: OnCount):
        self.store = store
        self.part = part
        self.rows_in = 0
        self.counts = Counts()
        self._on_count = on_count

    def count_in(self, rows: int = 1) -> None:
        self.rows_in += rows

    def count_ok(self, rows: int = 1) -> None:
        self._count(Counts(ok=rows))

    def count_dropped(self, reason: str) -> None:
        change = Counts()
        change.dropped[reason] = 1
        self._count(change)

    def count_failed(self, reason: str) -> None:
        change = Counts()
        change.failed[reason] = 1
        self._count(change)

    def _count(self, change: Counts) -> None:
        self.counts.add(change)
        self._on_count(change)

    def write_table(self, table: pa.Table) -> None:
        self.store.write_table(f"{self.part}.parquet", table)

    def write_array(self, array: np.ndarray) -> None:
        self.store.write_array(f"{self.part}.npy", array)


@dataclass(frozen=True)
class Stage:
    """A function from one shard to one part, with all that its result depends on.

    `folder` is where its parts lie in the work directory, `inputs` names what a shard's part is
    made from (name -> fingerprint), `config` is every setting that its content depends on.
    """

    name: str
    folder: str
    config: dict[str, Any]
    inputs: Callable[[Shard], dict[str, str]]
    run_shard: Callable[[Shard, PartWriter], None]

    def part(self, shard: Shard) -> str:
        return f"{self.folder}/{shard.name}"


def missing(stage: Stage, shards: Iterable[Shard], store: Store) -> list[Shard]:
    """The shards whose part is not there, or was made from other inputs or settings."""
    return [
        shard
        for shard in shards
        if not store.is_done(stage.part(shard), stage.inputs(shard), stage.config)
    ]


def run_one(stage: Stage, shard: Shard, store: Store, on_count: OnCount) -> Counts:
    """Make one part and then its marker. Any engine is a caller of this function."""
    inputs = stage.inputs(shard)
    writer = PartWriter(store, stage.part(shard), on_count)
    stage.run_shard(shard, writer)
    store.write_marker(writer.part, Marker(inputs, stage.config, writer.rows_in, writer.counts))
    return writer.counts


def refuse_other_settings(stage: Stage, shards: Iterable[Shard], store: Store) -> None:
    """Raise UserError if parts of this stage stand there that other settings made.

    Captions can cost days: they are never overwritten because a flag changed.
    """
    for shard in shards:
        marker = store.read_marker(stage.part(shard))
        if marker is None or marker.config == stage.config:
            continue
        names = sorted(set(marker.config) | set(stage.config))
        changes = [
            f"{name} {marker.config.get(name)!r} -> {stage.config.get(name)!r}"
            for name in names
            if marker.config.get(name) != stage.config.get(name)
        ]
        raise UserError(
            f"{store.path(stage.folder)} was made with other settings ({'; '.join(changes)}). "
            "Choose another name or work directory, or pass --force to make it again."
        )
