"""Import precomputed captions or scores from CSV or parquet files, joined on uid.

The rows (see given.py) are joined to the pool's samples in buckets (see join.py), so that memory is
bounded regardless of the number of rows. One part per shard is written, as in captioning and
scoring, by one thread per core: most of the work is in Arrow and NumPy, which release Python's
lock.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.given import REASONS, SUFFIXES, Fault, FaultCounts, check_usable, read_given
from capmix.annotate.join import Join, Joined
from capmix.caption.flag_column import flag_column
from capmix.engine.local import cores
from capmix.engine.prefetch import prefetched
from capmix.errors import UserError
from capmix.pool import Pool, Shard
from capmix.settings.counted import counted
from capmix.settings.tables import table_lines
from capmix.storage.database import scratch_database
from capmix.storage.draft import MadeMeanwhileError
from capmix.storage.filesystem import expanded
from capmix.storage.layout import SAMPLES, captions_folder, scores_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import DROPPED, FAILED, OK, STATUS_FIELDS
from capmix.storage.store import Store

MEMORY = "2GB"
THREADS = 8  # maximum; with more, some would wait for Python's lock
SHARDS_AHEAD = 64  # shards whose uids are read ahead


@dataclass(frozen=True)
class Imported:
    """The result of an import.

    `matched` and `without` count the samples with and without a value; `unknown` and `repeated`
    count rows. `faults` has the rows without a usable value, by reason (see given.REASONS).
    """

    matched: int
    without: int
    unknown: int
    repeated: int
    faults: dict[str, Fault] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        rows = [
            [f"{fault.rows:,}", reason, f"{REASONS[reason]}; {fault.example}"]
            for reason, fault in self.faults.items()
        ]
        return [
            f"{counted(self.matched, 'sample')} with a value, {self.without:,} without",
            f"{counted(self.unknown, 'row')} with a uid that is not in the pool, "
            f"{counted(self.repeated, 'row')} with a repeated uid (the first row was used)",
            *(
                f"  {line}"
                for line in table_lines(["rows", "reason", "first"], rows, "rll")
                if rows
            ),
        ]


def import_captions(
    store: Store,
    pool: Pool,
    files: Sequence[str],
    source: str,
    uid: str,
    text: str,
    force: bool = False,
) -> Imported:
    """Write the captions of `source` from columns `uid` and `text` of the files."""
    return _import(store, pool, files, captions_folder(source), uid, text, True, force)


def import_scores(
    store: Store,
    pool: Pool,
    files: Sequence[str],
    scorer: str,
    source: str,
    uid: str,
    column: str,
    force: bool = False,
) -> Imported:
    """Write the scores of `source` by `scorer` from columns `uid` and `column` of the files."""
    return _import(store, pool, files, scores_folder(scorer, source), uid, column, False, force)


def _import(
    store: Store,
    pool: Pool,
    files: Sequence[str],
    folder: str,
    uid: str,
    column: str,
    is_caption: bool,
    force: bool,
) -> Imported:
    paths = _expand(files)
    config = {"import": [Path(path).name for path in paths], "uid": uid, "column": column}
    config["files"] = hashlib.sha256("\n".join(map(_stamp, paths)).encode()).hexdigest()[:16]
    content = _content(paths)
    done = None if force else _earlier_result(store, pool, folder, config, content)
    if done is not None:
        return done
    counts, repeated = Counts(), 0
    try:
        with store.scratch() as scratch, scratch_database(scratch, memory=MEMORY) as connection:
            kind = pa.string() if is_caption else pa.float32()
            samples = _estimated_samples(store, pool)
            join = Join(connection, scratch, paths, kind, len(pool.shards), samples)
            counted = FaultCounts()
            for table in read_given(connection, paths, uid, column, is_caption, counted):
                join.add_given(table)
            inputs = _add_samples(join, store, pool)
            join.match(counted)
            faults = counted.found(paths)
            if not force:
                check_usable(counted.is_usable, paths, faults)
            unknown = faults["unknown_uid"].rows if "unknown_uid" in faults else 0
            extra = {"content": content, "unknown": unknown}
            extra["faults"] = {name: asdict(one) for name, one in faults.items()}
            writer = _Writer(store, pool, folder, inputs, config, is_caption, extra)
            threads = min(cores(), THREADS)
            for (_, one), made in prefetched(join.by_shard(), writer.write, threads, threads + 1):
                counts.add(made.result())
                repeated += one.repeated
    except (duckdb.Error, pa.ArrowException) as error:
        raise UserError(f"import: {paths[0]}: {str(error).splitlines()[0]}") from error
    return Imported(counts.ok, counts.dropped.total(), unknown, repeated, faults)


def _content(paths: Sequence[str]) -> str:
    """Return a digest (32 hex digits) of the contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _earlier_result(
    store: Store, pool: Pool, folder: str, config: dict[str, Any], content: str
) -> Imported | None:
    """Return the result of an earlier import of the same files with the same settings.

    Returns None if any part is missing or differs.
    """
    total, unknown, repeated = Counts(), 0, 0
    faults: dict[str, Fault] = {}
    with store.listed([folder, SAMPLES]):
        for shard in pool.shards:
            part, inputs = f"{folder}/{shard.name}", _inputs(store, shard)
            marker = store.read_marker(part)
            if marker is None or marker.extra.get("content") != content:
                return None
            if not store.is_done(part, inputs, config):
                return None
            total.add(marker.counts)
            unknown, repeated = marker.extra["unknown"], repeated + marker.extra["repeated"]
            known = marker.extra.get("faults", {})  # missing in parts of capmix 0.1
            faults = {name: Fault(**one) for name, one in known.items()}
    return Imported(total.ok, total.dropped.total(), unknown, repeated, faults)


def _inputs(store: Store, shard: Shard) -> dict[str, str]:
    return {SAMPLES: store.fingerprint(f"{SAMPLES}/{shard.name}")}


def _expand(files: Sequence[str]) -> list[str]:
    """Return the paths that files and patterns name.

    Raises UserError if one matches nothing, or if the files have unsupported or different formats.
    """
    paths: list[str] = []
    for name in files:
        found = expanded(name)
        if not found:
            raise UserError(f"import: no file {name}")
        paths += found
    for path in paths:
        if Path(path).suffix not in SUFFIXES:
            raise UserError(f"import: {path}: expected a file ending in {', '.join(SUFFIXES)}")
    if len({Path(path).suffix for path in paths}) > 1:
        raise UserError("import: mixed file formats; import CSV and parquet files separately")
    return paths


def _stamp(path: str) -> str:
    about = Path(path).stat()
    return f"{Path(path).name} {about.st_size} {about.st_mtime_ns}"


def _estimated_samples(store: Store, pool: Pool) -> int:
    """Return the number of samples in the pool, including those that are not ok."""
    with store.listed([SAMPLES]):
        markers = (store.read_marker(f"{SAMPLES}/{shard.name}") for shard in pool.shards)
        return sum(marker.rows_in for marker in markers if marker is not None)


def _add_samples(join: Join, store: Store, pool: Pool) -> dict[str, dict[str, str]]:
    """Add all ok samples to the join. Returns the inputs of each shard's positions."""

    def read(shard: Shard) -> tuple[dict[str, str], pa.ChunkedArray, np.ndarray]:
        inputs = _inputs(store, shard)
        part = store.read_table(f"{SAMPLES}/{shard.name}.parquet", ["uid", "status"])
        is_ok = pc.equal(part["status"], OK)
        return inputs, part["uid"].filter(is_ok), np.flatnonzero(is_ok)

    inputs = {}
    for shard, finished in prefetched(pool.shards, read, min(cores(), THREADS), SHARDS_AHEAD):
        inputs[shard.name], uids, positions = finished.result()
        join.add_samples(len(inputs) - 1, uids, positions)
    return inputs


@dataclass(frozen=True)
class _Writer:
    """Writes the parts of one import."""

    store: Store
    pool: Pool
    folder: str
    inputs: dict[str, dict[str, str]]
    config: dict[str, Any]
    is_caption: bool
    extra: dict[str, Any]

    def write(self, numbered: tuple[int, Joined]) -> Counts:
        """Write the part of a shard, given by its number in the pool."""
        number, found = numbered
        shard = self.pool.shards[number]
        samples = self.store.read_table(
            f"{SAMPLES}/{shard.name}.parquet", [name for name, _ in STATUS_FIELDS]
        )
        inputs = self.inputs[shard.name]
        if _inputs(self.store, shard) != inputs:
            raise UserError(
                f"import: the index of shard {shard.name} was overwritten during the import; rerun "
                "the command"
            )
        places = np.full(len(samples), -1, np.int64)
        places[found.positions] = np.arange(len(found.positions))
        values = found.values.take(pa.array(places, mask=places < 0))
        table = _part_table(samples, values, self.is_caption)
        part = f"{self.folder}/{shard.name}"
        # If the rows are unchanged, parts computed from them stay valid.
        known = self.store.fingerprint(part) if _is_unchanged(self.store, part, table) else ""
        counts = _counts(table)
        marker = Marker(
            inputs,
            self.config,
            len(samples),
            counts,
            self.extra | {"repeated": found.repeated},
            columns=tuple(table.column_names),
            upgraded=known,
        )
        with self.store.draft(part) as draft:
            draft.write_table(f"{part}.parquet", table)
            with suppress(MadeMeanwhileError):
                draft.commit(marker)
        return counts


def _is_unchanged(store: Store, part: str, table: pa.Table) -> bool:
    marker = store.read_marker(part)
    if marker is None or store.is_gone(part, marker):
        return False
    try:
        return bool(store.read_table(f"{part}.parquet").equals(table))
    except UserError:  # the part is damaged
        return False


def _part_table(samples: pa.Table, values: pa.Array, is_caption: bool) -> pa.Table:
    """Return the rows of a part: ok samples with their `values`, other samples unchanged."""
    if is_caption:
        values = pc.utf8_trim_whitespace(values)
    else:  # an infinite score would pass every threshold
        values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))
    was_ok = pc.equal(samples["status"], OK)
    missing = pc.and_(was_ok, pc.is_null(values))
    empty = pc.and_(was_ok, pc.equal(values, "") if is_caption else pa.scalar(False))
    empty = pc.fill_null(empty, False)
    kept = pc.and_(was_ok, pc.invert(pc.or_(missing, empty)))
    nothing = pa.scalar(None, values.type)

    def named(column: str, of_missing: str, of_empty: str) -> pa.Array:
        otherwise = pc.if_else(empty, of_empty, samples[column])
        return pc.if_else(missing, of_missing, otherwise)

    columns = {
        "uid": samples["uid"],
        "key": samples["key"],
        "status": named("status", DROPPED, DROPPED),
        "reason": named("reason", "not_imported", "empty_caption"),
        "detail": named("detail", "no value in the imported files", "the caption is empty"),
        "k": pc.if_else(kept, pa.scalar(0, pa.int32()), pa.scalar(None, pa.int32())),
    }
    chosen = pc.if_else(kept, values, nothing)
    if not is_caption:
        unknown = pa.nulls(len(samples), pa.bool_())
        return pa.table(columns | {"score": chosen, "truncated": unknown})
    finish = pc.if_else(kept, "stop", pa.scalar(None, pa.string()))
    flags = flag_column(chosen.combine_chunks(), "stop")
    return pa.table(columns | {"text": chosen, "finish": finish, "flags": flags})


def _counts(table: pa.Table) -> Counts:
    counts = Counts()
    for group in table.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist():
        number = group["count_all"]
        if group["status"] == OK:
            counts.ok += number
        else:
            (counts.failed if group["status"] == FAILED else counts.dropped)[group["reason"]] += (
                number
            )
    return counts
