"""Stages, and how to run a stage on one shard.

An engine calls `run_one` for every shard that `missing` returns, in any process or on any machine.
It does not handle images or captions itself.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.engine.busy import Busy
from capmix.engine.partial import PartialPart
from capmix.engine.read_ahead import ReadAhead
from capmix.engine.redo import Redo, Reuse
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.compare import changes
from capmix.storage.draft import Draft, MadeMeanwhileError, OtherMadeError
from capmix.storage.layout import part_name
from capmix.storage.marker import FORMAT, Counts, Marker
from capmix.storage.rows import DROPPED, OK
from capmix.storage.store import Store

OnCount = Callable[[Counts], None]
REPORT_INTERVAL = 0.2  # seconds


class PartWriter:
    """Writes the part of one shard, and counts the rows that enter and leave the stage.

    `keys` are the keys of the requested samples; None means all samples of the shard. `kept` holds,
    by key, what the stage can reuse for some of them. The stage records the time of its model in
    `busy`, and writes files other than the table and the array to `draft`.

    A stage may add the results of single samples to `partial`, and take them from there if an
    earlier run has left some; `resumed` counts those that are not failures. `is_retry` is whether
    failed samples should be computed again.
    """

    def __init__(
        self,
        draft: Draft,
        on_count: OnCount,
        partial: PartialPart,
        redo: Redo | None = None,
        is_retry: bool = False,
    ):
        self.draft, self.part = draft, draft.part
        self.partial, self.resumed, self.is_retry = partial, 0, is_retry
        self.keys = None if redo is None else redo.keys
        self.kept: Mapping[str, Any] = {} if redo is None else redo.kept
        self.rows_in = 0
        self.busy = Busy()
        self.columns: tuple[str, ...] = ()
        self.extra: dict[str, Any] = {}
        self._redo = redo
        self._on_count = on_count
        self._counts, self._unreported = Counts(), Counts()
        self._reported_at = time.monotonic()

    def is_known_bad(self, key: str, reason: str) -> bool:
        """Return whether the part already has the row of this broken sample."""
        return self._redo is not None and (key, reason) in self._redo.known_bad

    def count_in(self, rows: int = 1) -> None:
        self.rows_in += rows

    def count_ok(self, rows: int = 1) -> None:
        self._unreported.ok += rows
        self._report_if_due()

    def count_dropped(self, reason: str) -> None:
        self._unreported.dropped[reason] += 1
        self._report_if_due()

    def count_failed(self, reason: str) -> None:
        self._unreported.failed[reason] += 1
        self._report_if_due()

    def count(self, status: str, reason: str | None) -> None:
        """Count a row that has come in, by its status; `reason` is of one that is not ok."""
        self.count_in()
        if status == OK:
            self.count_ok()
        elif status == DROPPED:
            self.count_dropped(reason or "")
        else:
            self.count_failed(reason or "")

    def _report_if_due(self) -> None:
        """Report at most every REPORT_INTERVAL seconds: a report per sample would cost time."""
        if time.monotonic() - self._reported_at > REPORT_INTERVAL:
            self._report()

    @property
    def counts(self) -> Counts:
        """All rows counted so far."""
        self._report()
        return self._counts

    def _report(self) -> None:
        self._counts.add(self._unreported)
        self._on_count(self._unreported)
        self._unreported, self._reported_at = Counts(), time.monotonic()

    def write_table(self, table: pa.Table) -> None:
        if self._redo is not None:
            table = self._redo.merged(table)
        self.draft.write_table(f"{self.part}.parquet", table)
        self.columns = tuple(table.column_names)

    def write_array(self, array: np.ndarray) -> None:
        self.draft.write_array(f"{self.part}.npy", array)


@dataclass(frozen=True)
class Stage:
    """Function from one shard to one part, with everything that its result depends on.

    Attributes:
        name: Name in messages.
        folder: Folder of the parts in the work directory.
        config: Every setting that the content of a part depends on.
        inputs: Returns the inputs of a shard's part, as name -> fingerprint.
        run_shard: Computes one part.
        reads: Folders whose fingerprints `inputs` returns.
        by_sample: Whether `run_shard` can process only the samples in `keys` of its writer.
        of_samples: Whether a part counts one row for each sample of its shard.
        defaults: Default values of `config`. A setting at its default counts as absent.
        columns: Columns of the part's table. A part of an older version of capmix that lacks some
            of them is passed to `upgrade`, or recomputed if `upgrade` is None.
        upgrade: Adds missing columns to a table.
        provenance: Stored in markers; does not affect whether a part is valid.
        after: Called after a part is finished.
        reuse: What to keep of existing parts; None to recompute them.
        rides_on: Folder of the stage that this stage follows within a shard, to use what it read.
        image_pass: Reads a shard's images for `run_shard` and keeps the result for the other stages
            with the same function.
        ahead: Reader of `run_shard`, to which engines announce the shard that probably comes next.
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
    rides_on: str = ""
    image_pass: Callable[[Shard, Busy], object] | None = None
    ahead: ReadAhead[Shard, Any, Any] | None = None

    def part(self, shard: Shard) -> str:
        return part_name(self.folder, shard.name)


@dataclass
class PartOutcome:
    """Result of computing a part: the rows processed by this run, and seconds.

    `resumed` of the rows that are not failed were taken from an earlier run.
    """

    counts: Counts = field(default_factory=Counts)
    busy: Busy = field(default_factory=Busy)
    seconds: float = 0.0
    resumed: int = 0

    def add(self, other: "PartOutcome") -> None:
        self.counts.add(other.counts)
        self.resumed += other.resumed
        self.busy.add(other.busy)
        self.seconds += other.seconds


def in_order(stages: Sequence[Stage], numbers: Iterable[int]) -> list[int]:
    """Return the numbers of some stages in the order in which they run on a shard."""
    folders = [stage.folder for stage in stages]

    def place(number: int) -> tuple[int, bool]:
        ridden = stages[number].rides_on
        return (folders.index(ridden), True) if ridden else (number, False)

    return sorted(numbers, key=place)


def missing(stage: Stage, shards: Iterable[Shard], store: Store) -> list[Shard]:
    """Return the shards whose part is missing, incomplete, or from other inputs or settings."""
    with store.listed([stage.folder, *stage.reads]):
        return [shard for shard in shards if not is_done(stage, shard, store)]


def is_done(stage: Stage, shard: Shard, store: Store) -> bool:
    """Return whether the part of a shard is up to date."""
    known = stage.inputs(shard), stage.config, stage.defaults
    if store.is_done(stage.part(shard), *known, stage.columns):
        return True
    return stage.reuse is not None and stage.reuse.suffices(shard)


def _upgraded(stage: Stage, shard: Shard, store: Store) -> bool:
    """Add missing columns to a part if it is otherwise up to date. Return whether that was done."""
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
    """How to compute a part.

    `read` are the current inputs, `inputs` the ones to record in its marker, and `redo` what to
    keep of the existing part.
    """

    read: dict[str, str]
    inputs: dict[str, str]
    redo: Redo | None = None


def _plan(stage: Stage, shard: Shard, store: Store, retry: bool) -> _PartPlan | None:
    """Return how to compute the part; None if there is nothing to do.

    With `retry`, a finished part is planned again for its failed samples or, if a file of its
    shard could not be read, for all samples that the stage does not reuse.
    """
    part, inputs = stage.part(shard), stage.inputs(shard)
    if is_done(stage, shard, store):
        if not retry:
            return None
        marker = store.read_marker(part)
        redo = Redo.of(store, part) if stage.by_sample else None
        if marker is not None and redo is not None:
            return _PartPlan(inputs, marker.inputs, redo) if redo.keys else None
        is_exact = store.is_done(part, inputs, stage.config, stage.defaults, stage.columns)
        if not is_exact and not stage.by_sample:  # it has more samples than requested
            return None
    return _PartPlan(inputs, inputs, stage.reuse.redo(shard) if stage.reuse else None)


def partial_part(stage: Stage, shard: Shard, store: Store) -> PartialPart:
    """Return the partial part of a shard.

    Its results depend only on the sample, which is in the shard, and on the settings. They do not
    depend on which samples are selected.
    """
    return PartialPart(store, stage.folder, shard.name, [stage.config, shard.fingerprint])


def run_one(
    stage: Stage, shard: Shard, store: Store, on_count: OnCount, retry: bool = False
) -> PartOutcome:
    """Compute one part and write its marker. All engines call this function.

    With `retry`, recompute only the failed samples of a finished part if the stage supports that.
    Raises OSError if an input was overwritten during the computation.
    """
    started = time.monotonic()
    part = stage.part(shard)
    if not is_done(stage, shard, store) and _upgraded(stage, shard, store) and not retry:
        return PartOutcome(seconds=time.monotonic() - started)
    with store.draft(part) as draft, closing(partial_part(stage, shard, store)) as partial:
        plan = _plan(stage, shard, store, retry)
        if plan is None:  # another run has finished it meanwhile, or there is nothing to retry
            return PartOutcome(seconds=time.monotonic() - started)
        writer = PartWriter(draft, on_count, partial, plan.redo, retry)
        stage.run_shard(shard, writer)
        rows_in, counts = writer.rows_in, writer.counts
        if plan.redo is not None:
            rows_in, counts = plan.redo.totals(writer.rows_in, writer.counts)
        now = stage.inputs(shard)
        if changed := [name for name, one in now.items() if plan.read[name] != one]:
            raise OSError(f"{changed[0]} was overwritten while {stage.name} was reading it")
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
            partial.remove()
            return PartOutcome(seconds=time.monotonic() - started)
        except OtherMadeError as error:
            if stage.reuse is not None and error.has_same_settings:
                raise OSError(
                    f"{part} was written by a concurrent run with other samples"
                ) from error
            raise
        partial.remove()
    if stage.after is not None:
        stage.after(shard)
    seconds = time.monotonic() - started
    return PartOutcome(writer.counts, writer.busy, seconds, writer.resumed)


def refuse_other_settings(stage: Stage, shards: Sequence[Shard], store: Store) -> None:
    """Raise UserError if there are parts of this stage that were created with other settings.

    Captions can take days to compute, so a changed option never overwrites them without --force.
    """
    with store.listed([stage.folder]):
        for shard in shards:
            marker = store.read_marker(stage.part(shard))
            if marker is None or store.is_gone(stage.part(shard), marker):
                continue
            changed = changes(marker.config, stage.config, stage.defaults)
            if changed and not (stage.reuse and stage.reuse.keeps(marker.config)):
                raise UserError(
                    f"{store.path(stage.folder)} was created with different settings "
                    f"({'; '.join(changed)}). Choose another name or work directory, or pass "
                    "--force to overwrite it."
                )
