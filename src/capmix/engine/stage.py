"""What an engine runs: a stage, and one shard of it.

An engine calls `run_one` for every shard that `missing` names, in whatever process or machine it
likes. It never sees images or captions.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.busy import Busy
from capmix.engine.redo import Redo, Reuse
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.compare import changes
from capmix.storage.draft import Draft, MadeMeanwhileError, OtherMadeError
from capmix.storage.layout import part_name
from capmix.storage.marker import FORMAT, Counts, Marker
from capmix.storage.store import Store

OnCount = Callable[[Counts], None]
TOLD_EVERY = 0.2  # seconds


class PartWriter:
    """Where a stage puts one shard's part, and where it counts every row in and out.

    `keys` are those of the samples that are asked for; None stands for all of the shard. `kept` is
    what the stage has of some of them already, by key. `busy` is where a stage notes what its
    model does, `draft` where files of other kinds go.
    """

    def __init__(self, draft: Draft, on_count: OnCount, redo: Redo | None = None):
        self.draft, self.part = draft, draft.part
        self.keys = None if redo is None else redo.keys
        self.kept: Mapping[str, Any] = {} if redo is None else redo.kept
        self.rows_in = 0
        self.busy = Busy()
        self.columns: tuple[str, ...] = ()
        self.extra: dict[str, Any] = {}
        self._redo = redo
        self._on_count = on_count
        self._counts, self._untold = Counts(), Counts()
        self._told_at = time.monotonic()

    def is_known_bad(self, key: str, reason: str) -> bool:
        """Whether the part has the row of this broken sample already."""
        return self._redo is not None and (key, reason) in self._redo.known_bad

    def count_in(self, rows: int = 1) -> None:
        self.rows_in += rows

    def count_ok(self, rows: int = 1) -> None:
        self._untold.ok += rows
        self._tell()

    def count_dropped(self, reason: str) -> None:
        self._untold.dropped[reason] += 1
        self._tell()

    def count_failed(self, reason: str) -> None:
        self._untold.failed[reason] += 1
        self._tell()

    def _tell(self) -> None:
        """Progress is for people: a sample alone is not worth their while."""
        if time.monotonic() - self._told_at > TOLD_EVERY:
            self._tell_now()

    @property
    def counts(self) -> Counts:
        """All rows that were counted so far."""
        self._tell_now()
        return self._counts

    def _tell_now(self) -> None:
        self._counts.add(self._untold)
        self._on_count(self._untold)
        self._untold, self._told_at = Counts(), time.monotonic()

    def write_table(self, table: pa.Table) -> None:
        if self._redo is not None:
            table = self._redo.merged(table)
        self.draft.write_table(f"{self.part}.parquet", table)
        self.columns = tuple(table.column_names)

    def write_array(self, array: np.ndarray) -> None:
        self.draft.write_array(f"{self.part}.npy", array)


@dataclass(frozen=True)
class Stage:
    """A function from one shard to one part, with all that its result depends on.

    `folder` is where its parts lie in the work directory, `inputs` names what a shard's part is
    made from (name -> fingerprint), `config` is every setting that its content depends on. `reads`
    are the folders whose fingerprints `inputs` gives. With `by_sample`, run_shard heeds the `keys`
    of the writer, and `reuse` says what of earlier parts stays. `of_samples` says that a part
    counts one row for each sample of its shard.

    `defaults` are those of settings in `config`, which count as absent where they are at them.
    `columns` are those of the part's table; a part of an older capmix that lacks some is made
    again, or gets them from `upgrade` where there is one. `provenance` goes into markers and
    decides nothing. `after` is called once a part is finished.
    """

    name: str
    folder: str
    config: dict[str, Any]
    inputs: Callable[[Shard], dict[str, str]]
    run_shard: Callable[[Shard, PartWriter], None]
    reads: tuple[str, ...] = ()
    by_sample: bool = False
    of_samples: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    upgrade: Callable[[pa.Table], pa.Table] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    after: Callable[[Shard], None] | None = None
    reuse: Reuse | None = None

    def part(self, shard: Shard) -> str:
        return part_name(self.folder, shard.name)


@dataclass
class PartOutcome:
    """What making a part came to: the rows of this run, and seconds."""

    counts: Counts = field(default_factory=Counts)
    busy: Busy = field(default_factory=Busy)
    seconds: float = 0.0

    def add(self, other: "PartOutcome") -> None:
        self.counts.add(other.counts)
        self.busy.add(other.busy)
        self.seconds += other.seconds


def missing(stage: Stage, shards: Iterable[Shard], store: Store) -> list[Shard]:
    """The shards whose part is not there, not whole, or made from other inputs or settings."""
    with store.listed([stage.folder, *stage.reads]):
        return [shard for shard in shards if not is_done(stage, shard, store)]


def is_done(stage: Stage, shard: Shard, store: Store) -> bool:
    """Whether the part of a shard needs no work."""
    known = stage.inputs(shard), stage.config, stage.defaults
    if store.is_done(stage.part(shard), *known, stage.columns):
        return True
    return stage.reuse is not None and stage.reuse.suffices(shard)


def _upgraded(stage: Stage, shard: Shard, store: Store) -> bool:
    """Whether a part lacked nothing but columns, and has them now."""
    part = stage.part(shard)
    if stage.upgrade is None or not store.is_done(
        part, stage.inputs(shard), stage.config, stage.defaults
    ):
        return False
    marker = store.read_marker(part)
    assert marker is not None
    table = stage.upgrade(store.read_table(f"{part}.parquet"))
    known, columns = store.fingerprint(part), tuple(table.column_names)
    newer = replace(marker, columns=columns, format=FORMAT, upgraded=known)
    with store.draft(part) as draft:
        draft.files |= marker.files
        draft.write_table(f"{part}.parquet", table)
        draft.commit(replace(newer, files={}))
    return True


@dataclass(frozen=True)
class _PartPlan:
    """How a part is made: `read` are the inputs now, `inputs` those that its marker names, `redo`
    what stays of it."""

    read: dict[str, str]
    inputs: dict[str, str]
    redo: Redo | None = None


def _plan(stage: Stage, shard: Shard, store: Store, retry: bool) -> _PartPlan | None:
    """None where nothing is to be done. With `retry`, of a part that is done its failed samples;
    where one of its files could not be read, all that the stage does not keep."""
    part, inputs = stage.part(shard), stage.inputs(shard)
    if is_done(stage, shard, store):
        if not retry:
            return None
        marker = store.read_marker(part)
        redo = Redo.of(store, part) if stage.by_sample else None
        if marker is not None and redo is not None:
            return _PartPlan(inputs, marker.inputs, redo) if redo.keys else None
        is_exact = store.is_done(part, inputs, stage.config, stage.defaults, stage.columns)
        if not is_exact and not stage.by_sample:  # it has more samples than are asked for
            return None
    return _PartPlan(inputs, inputs, stage.reuse.redo(shard) if stage.reuse else None)


def run_one(
    stage: Stage, shard: Shard, store: Store, on_count: OnCount, retry: bool = False
) -> PartOutcome:
    """Make one part and then its marker. Any engine is a caller of this function.

    With `retry`, of a part that is done the samples that failed alone, where the stage can. Raises
    OSError where an input was written again meanwhile.
    """
    started = time.monotonic()
    part = stage.part(shard)
    if not is_done(stage, shard, store) and _upgraded(stage, shard, store) and not retry:
        return PartOutcome(seconds=time.monotonic() - started)
    with store.draft(part) as draft:
        plan = _plan(stage, shard, store, retry)
        if plan is None:  # made by another run meanwhile, or nothing of it can be tried again
            return PartOutcome(seconds=time.monotonic() - started)
        writer = PartWriter(draft, on_count, plan.redo)
        stage.run_shard(shard, writer)
        rows_in, counts = writer.rows_in, writer.counts
        if plan.redo is not None:
            rows_in, counts = plan.redo.totals(writer.rows_in, writer.counts)
        now = stage.inputs(shard)
        if changed := [name for name, one in now.items() if plan.read[name] != one]:
            raise OSError(f"{changed[0]} was written again while {stage.name} read it")
        marker = Marker(
            plan.inputs,
            stage.config,
            rows_in,
            counts,
            writer.extra,
            columns=writer.columns,
            provenance=stage.provenance,
        )
        try:
            draft.commit(marker)
        except MadeMeanwhileError:
            return PartOutcome(seconds=time.monotonic() - started)
        except OtherMadeError as error:
            if stage.reuse is not None and error.has_same_settings:
                raise OSError(f"{part} was written meanwhile by a run of other samples") from error
            raise
    if stage.after is not None:
        stage.after(shard)
    return PartOutcome(writer.counts, writer.busy, time.monotonic() - started)


def refuse_other_settings(stage: Stage, shards: Sequence[Shard], store: Store) -> None:
    """Raise UserError if parts of this stage stand there that other settings made.

    Captions can cost days: they are never overwritten because a flag changed.
    """
    with store.listed([stage.folder]):
        for shard in shards:
            marker = store.read_marker(stage.part(shard))
            if marker is None or store.is_gone(stage.part(shard), marker):
                continue
            changed = changes(marker.config, stage.config, stage.defaults)
            if changed and not (stage.reuse and stage.reuse.keeps(marker.config)):
                raise UserError(
                    f"{store.path(stage.folder)} was made with other settings "
                    f"({'; '.join(changed)}). Choose another name or work directory, or pass "
                    "--force to overwrite it."
                )
