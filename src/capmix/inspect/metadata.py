"""Compare a pool with the metadata that it was downloaded from, by uid: how much of it is there.

Rows of the metadata and samples of the index are joined in a temporary database on disk, so that
memory is bounded for any number of rows. The reasons for missing rows come from the tables and
statistics that img2dataset writes beside its tars, if the pool has them, or from a column `status`
of the metadata itself.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.pool import Pool
from capmix.settings.counted import counted
from capmix.settings.tables import table_html, table_lines
from capmix.storage.database import scratch_database
from capmix.storage.filesystem import expanded
from capmix.storage.json_text import parse_object
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import OK
from capmix.storage.store import Store

MEMORY, THREADS = "1GB", 2
ROWS_AT_ONCE = 100_000
LONGEST_REASON = 80  # characters; servers choose some of the texts
REASONS_SHOWN = 12
MOST_REASONS = 1_000  # of a file; the others are counted together
UNKNOWN, RARE = "unknown", "other reasons"
NOT_KEPT = "downloaded, but no longer in the pool"
SUCCESS = "success"  # img2dataset's status of a downloaded image
STATS_BYTES = 1 << 20
HEADS = ("metadata", "rows", "in pool", "share", "failed", "missing", "no uid")
# A uid with several rows or samples counts once per row; `ok` wins over a failed sample.
COVERED = """
select m.file, count(*), count(m.uid),
    count(*) filter (where p.is_ok), count(*) filter (where not p.is_ok)
from metadata m left join (select uid, bool_or(is_ok) as is_ok from samples group by uid) p
on m.uid = p.uid group by m.file
"""
MISSING = """
select m.file, coalesce(d.reason, m.reason, ?) as why, count(*) as times
from (select * from metadata where uid is not null) m
left join (select distinct uid from samples) p on m.uid = p.uid
left join (select uid, min(reason) as reason from downloads group by uid) d on m.uid = d.uid
where p.uid is null group by 1, 2
qualify row_number() over (partition by m.file order by times desc, why) <= ?
"""
OTHERS = "select count(*) from samples s where not exists (from metadata m where m.uid = s.uid)"
DISTINCT = "select count(uid) - count(distinct uid) from metadata"


@dataclass(frozen=True)
class FileCoverage:
    """The rows of one metadata file.

    `in_pool` are ok in the index, `failed` are in the pool but failed there, `missing` are not in
    the pool, and `no_uid` have no uid. `reasons` counts the missing rows by reason.
    """

    file: str
    rows: int = 0
    in_pool: int = 0
    failed: int = 0
    missing: int = 0
    no_uid: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolCoverage:
    """How much of its metadata a pool has.

    `repeated` counts rows with the uid of another row. `samples` are the samples of the pool with a
    uid, and `not_in_metadata` those of them that no file has. `downloads` sums the status counts of
    img2dataset's `_stats.json` files beside the shards.
    """

    pool: str
    files: list[FileCoverage]
    repeated: int
    samples: int
    not_in_metadata: int
    downloads: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> FileCoverage:
        """The sum over all files."""
        reasons: Counter[str] = Counter()
        for one in self.files:
            reasons.update(one.reasons)
        names = ("rows", "in_pool", "failed", "missing", "no_uid")
        sums = {name: sum(getattr(one, name) for one in self.files) for name in names}
        return FileCoverage("all files", **sums, reasons=dict(reasons.most_common()))

    def as_json(self) -> dict[str, Any]:
        """Return all numbers as JSON values."""
        return asdict(self) | {"total": asdict(self.total)}

    def to_table(self) -> pa.Table:
        """Return one row per file, without reasons."""
        rows = [{k: v for k, v in asdict(one).items() if k != "reasons"} for one in self.files]
        return pa.Table.from_pylist(rows)

    def lines(self) -> list[str]:
        """Return a human-readable table, and the reasons."""
        found = [f"pool {self.pool}", *table_lines(HEADS, self._rows())]
        found += _reason_lines("missing rows by reason:", self.total.reasons)
        found += _reason_lines("img2dataset's own counts:", self.downloads)
        return [
            *found,
            f"{counted(self.repeated, 'row')} of the metadata with a repeated uid",
            f"{self.not_in_metadata:,} of {counted(self.samples, 'sample')} of the pool not in the "
            "metadata",
        ]

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return table_html(HEADS, self._rows(), title=f"pool {self.pool}")

    def _rows(self) -> list[list[str]]:
        shown = [*self.files, self.total] if len(self.files) > 1 else self.files
        return [
            [
                one.file,
                f"{one.rows:,}",
                f"{one.in_pool:,}",
                f"{one.in_pool / one.rows:.1%}" if one.rows else "",
                f"{one.failed:,}",
                f"{one.missing:,}",
                f"{one.no_uid:,}",
            ]
            for one in shown
        ]


def _reason_lines(head: str, reasons: dict[str, int]) -> list[str]:
    if not reasons or set(reasons) == {UNKNOWN}:
        return []
    counts = Counter(reasons)
    rows = [[f"{count:,}", reason] for reason, count in counts.most_common(REASONS_SHOWN)]
    if (rest := len(counts) - len(rows)) > 0:
        others = counts.total() - sum(count for _, count in counts.most_common(REASONS_SHOWN))
        rows.append([f"{others:,}", f"{rest:,} other reasons"])
    return [head, *(f"  {line}" for line in table_lines([], rows, "rl"))]


def pool_coverage(store: Store, pool: Pool, files: Sequence[str]) -> PoolCoverage:
    """Compare the indexed pool with metadata files (parquet with a column `uid`).

    Raises UserError if a pattern names no file, or if a file cannot be read or has no uids.
    """
    paths = _expand(files)
    try:
        with (
            store.scratch() as scratch,
            scratch_database(scratch, "coverage.duckdb", MEMORY, THREADS) as connection,
        ):
            connection.execute("create table samples (uid varchar, is_ok boolean)")
            connection.execute("create table metadata (file integer, uid varchar, reason varchar)")
            connection.execute("create table downloads (uid varchar, reason varchar)")
            _add_all(connection, "samples", _samples(store, pool))
            _add_all(connection, "metadata", _metadata(paths))
            _add_all(connection, "downloads", _download_tables(pool))
            return _coverage(connection, pool, paths)
    except duckdb.Error as error:
        raise UserError(f"status: {str(error).splitlines()[0]}") from error


def _coverage(
    connection: duckdb.DuckDBPyConnection, pool: Pool, paths: Sequence[str]
) -> PoolCoverage:
    reasons: dict[int, Counter[str]] = {}
    for file, reason, count in connection.execute(MISSING, [UNKNOWN, MOST_REASONS]).fetchall():
        reasons.setdefault(file, Counter())[reason or UNKNOWN] += count
    found = {row[0]: row[1:] for row in connection.execute(COVERED).fetchall()}
    of_files = []
    for number, path in enumerate(paths):
        rows, with_uid, ok, failed = found.get(number, (0, 0, 0, 0))
        missing, of_file = with_uid - ok - failed, reasons.get(number, Counter())
        if rare := missing - of_file.total():
            of_file[RARE] += rare
        ordered = dict(of_file.most_common())
        of_files.append(FileCoverage(path, rows, ok, failed, missing, rows - with_uid, ordered))
    (samples,), (others,), (repeated,) = (
        connection.execute(query).fetchall()[0]
        for query in ("select count(*) from samples", OTHERS, DISTINCT)
    )
    return PoolCoverage(pool.location, of_files, repeated, samples, others, _statistics(pool))


def _expand(files: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for name in files:
        found = expanded(name, ".parquet")
        if not found:
            raise UserError(f"--metadata {name}: no such file; expected parquet files or a folder")
        paths += found
    return list(dict.fromkeys(paths))


def _add_all(connection: duckdb.DuckDBPyConnection, name: str, tables: Iterable[pa.Table]) -> None:
    """Insert tables with the columns of the database's table `name`."""
    for rows in tables:
        connection.register("capmix_rows", rows)
        connection.table("capmix_rows").insert_into(name)
        connection.unregister("capmix_rows")


def _samples(store: Store, pool: Pool) -> Iterator[pa.Table]:
    for shard in pool.shards:
        table = store.read_table(f"{SAMPLES}/{shard.name}.parquet", ["uid", "status"])
        table = table.filter(table["uid"].is_valid())
        yield pa.table({"uid": table["uid"], "is_ok": pc.equal(table["status"], OK)})


def _metadata(paths: Sequence[str]) -> Iterator[pa.Table]:
    for number, path in enumerate(paths):
        try:
            with pq.ParquetFile(path) as file:
                for uids, reasons in _uids_and_reasons(file):
                    numbers = pa.array([number] * len(uids), pa.int32())
                    yield pa.table({"file": numbers, "uid": uids, "reason": reasons})
        except (OSError, pa.ArrowException) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"--metadata {path}: {why}. Expected a parquet file") from error
        except KeyError as error:
            raise UserError(f"--metadata {path}: no text column 'uid'") from error


def _download_tables(pool: Pool) -> Iterator[pa.Table]:
    """Yield uid and reason from the tables beside the shards; unreadable ones are left out."""
    for stream in _beside(pool, ".parquet"):
        with (
            contextlib.suppress(OSError, pa.ArrowException, KeyError),
            pq.ParquetFile(stream) as file,
        ):
            if "status" in file.schema_arrow.names:
                for uids, reasons in _uids_and_reasons(file):
                    yield pa.table({"uid": uids, "reason": reasons})


def _uids_and_reasons(file: pq.ParquetFile) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield uids and img2dataset's reasons, or null. Raises KeyError if there is no column uid."""
    types = {one.name: one.type for one in file.schema_arrow}
    is_text = {name for name, kind in types.items() if _is_text(kind)}
    if "uid" not in is_text:
        raise KeyError("uid")
    names = ["uid", *(one for one in ("status", "error_message") if one in is_text)]
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
        columns = {name: batch[name].cast(pa.string()) for name in names}
        reasons = pa.nulls(len(batch), pa.string())
        status = columns.get("status")
        if status is not None:
            errors = columns.get("error_message", reasons)
            reasons = pc.utf8_slice_codeunits(pc.coalesce(errors, status), 0, LONGEST_REASON)
            reasons = pc.if_else(pc.fill_null(pc.equal(status, SUCCESS), False), NOT_KEPT, reasons)
        yield columns["uid"], reasons


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _statistics(pool: Pool) -> dict[str, int]:
    """Sum the status counts of img2dataset's statistics; damaged files are left out."""
    found: Counter[str] = Counter()
    for stream in _beside(pool, "_stats.json"):
        with contextlib.suppress(OSError, ValueError):
            counts = parse_object(stream.read(STATS_BYTES)).get("status_dict")
            for reason, count in counts.items() if isinstance(counts, dict) else ():
                if isinstance(count, int) and 0 <= count < 2**53:
                    found[str(reason)[:LONGEST_REASON]] += count
    return dict(found.most_common())


def _beside(pool: Pool, ending: str) -> Iterator[Any]:
    """Yield the open files that are named like the pool's tars, with another ending."""
    for shard in pool.shards if pool.is_tars else ():
        with contextlib.suppress(OSError), pool.open_beside(shard, ending) as stream:
            yield stream
