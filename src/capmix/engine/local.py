"""Map a stage over the missing shards in this process, with progress."""

import os
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from capmix.engine.stage import Stage, missing, run_one
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.rows import FAILED, rows_of
from capmix.store import Counts, Store

MAX_FAILURES = 0.01


def run_stage(
    stage: Stage, shards: Sequence[Shard], store: Store, max_failures: float = MAX_FAILURES
) -> Counts:
    """Make every missing part of `stage` and return the counts over all its parts.

    Progress (rows/s, time left, ok / dropped / failed) goes to standard error. Raises UserError
    when more than `max_failures` (a fraction) of all rows failed: what was made stays.
    """
    return run_stages([stage], shards, store, max_failures)[0]


def run_stages(
    stages: Sequence[Stage], shards: Sequence[Shard], store: Store, max_failures: float
) -> list[Counts]:
    """run_stage for several stages, shard by shard, so that they can share what a shard costs."""
    found = []
    made = _run_all(stages, shards, store)
    for stage in stages:
        counts = Counts()
        for shard in shards:
            marker = store.read_marker(stage.part(shard))
            if marker is not None:
                counts.add(marker.counts)
        rows, seconds = made.get(stage.name, (0, 0.0))
        rate = f"{rows / max(seconds, 1e-6):,.0f} rows/s, {seconds:.1f} s"
        prefix, suffix = ("", f"; {rate}") if stage.name in made else ("done before, ", "")
        print(f"{stage.name}: {prefix}{_summary(counts)}{suffix}", file=sys.stderr)
        if counts.failed:
            example = _first_failure(stage, shards, store)
            check_failures(stage.name, counts, max_failures, example)
            print(f"{stage.name}: {example}", file=sys.stderr)
        found.append(counts)
    return found


def _run_all(
    stages: Sequence[Stage], shards: Sequence[Shard], store: Store
) -> dict[str, tuple[int, float]]:
    """Make what is missing; rows and seconds by the name of each stage that had something to do."""
    waiting = {stage.name: {s.name for s in missing(stage, shards, store)} for stage in stages}
    todo = [(s, stage) for s in shards for stage in stages if s.name in waiting[stage.name]]
    made: dict[str, tuple[int, float]] = {}
    shown = Counts()
    if not todo:
        return made
    total = len(shards) * len(stages)
    with tqdm(
        total=total,
        initial=total - len(todo),
        unit="part",
        desc=stages[0].name,
        leave=False,
        disable=None,
    ) as bar:
        started = time.monotonic()

        def on_count(change: Counts) -> None:
            shown.add(change)
            rate = shown.total / max(time.monotonic() - started, 1e-6)
            bar.set_postfix_str(f"{rate:,.0f} rows/s, {_summary(shown)}", refresh=False)
            bar.update(0)

        for shard, stage in todo:
            before = time.monotonic()
            bar.set_description(stage.name, refresh=False)
            counts = run_one(stage, shard, store, on_count)
            rows, seconds = made.get(stage.name, (0, 0.0))
            made[stage.name] = rows + counts.total, seconds + time.monotonic() - before
            bar.update(1)
    return made


def check_failures(name: str, counts: Counts, max_failures: float, example: str) -> None:
    """Raise UserError if the share of failed rows is over the budget. `example` is one of them."""
    failed = counts.failed.total()
    if failed > max_failures * counts.total:
        raise UserError(
            f"{name}: {failed} of {counts.total} rows failed ({_reasons(counts.failed)}), over the "
            f"budget of {max_failures:.1%}. {example}. The parts list every failed row; mend the "
            "input and run again, or allow more with --max-failures."
        )


def _first_failure(stage: Stage, shards: Sequence[Shard], store: Store) -> str:
    """Where the first failed row is and why it failed."""
    for shard in shards:
        marker = store.read_marker(stage.part(shard))
        if marker is None or not marker.counts.failed:
            continue
        if not store.exists(f"{stage.part(shard)}.parquet"):
            return f"The first is in shard {shard.name}: {_reasons(marker.counts.failed)}"
        rows = rows_of(store.read_table(f"{stage.part(shard)}.parquet"))
        row = next(row for row in rows if row.status == FAILED)
        sample = f", sample {row.key!r}" if row.key else ""
        return f"The first: shard {shard.name}{sample}: {row.detail}".rstrip(".")
    return "The parts say which"


def _summary(counts: Counts) -> str:
    text = f"{counts.ok:,} ok, {counts.dropped.total():,} dropped, {counts.failed.total():,} failed"
    reasons = _reasons(counts.dropped + counts.failed)
    return f"{text} ({reasons})" if reasons else text


def _reasons(reasons: "dict[str, int]") -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
