"""Take captions or scores that others computed, from CSV or parquet, by uid.

DuckDB joins the files to the pool's samples in a database on disk, so that memory stays within a
bound whatever the number of rows. One part per shard is written, as captioning and scoring do.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb

from capmix.caption.captioner import Caption
from capmix.caption.stage import FIELDS as CAPTION_FIELDS
from capmix.caption.stage import caption_rows, captions_folder
from capmix.errors import UserError
from capmix.pool import Pool
from capmix.pool.index import FOLDER as SAMPLES
from capmix.rows import DROPPED, FAILED, OK, Row, table_of
from capmix.score.stage import FIELDS as SCORE_FIELDS
from capmix.score.stage import scores_folder
from capmix.store import Counts, Marker, Store

MEMORY = "2GB"
ROWS_AT_ONCE = 50_000
CSV = "read_csv({{files}}, delim='{delimiter}', quote='\"', escape='\"', header=true, "
CSV += "all_varchar=true, union_by_name=true)"
READERS = {
    ".csv": CSV.format(delimiter=","),
    ".tsv": CSV.format(delimiter="\t"),
    ".parquet": "read_parquet({files}, union_by_name=true)",
}


@dataclass(frozen=True)
class Imported:
    """What an import found: samples with a value and without, and rows of the files by fault."""

    matched: int
    without: int
    unknown_uids: int
    repeated_uids: int

    def lines(self) -> list[str]:
        """The summary for people."""
        return [
            f"{self.matched:,} samples got a value, {self.without:,} got none",
            f"{self.unknown_uids:,} uids of the files are not in the pool, "
            f"{self.repeated_uids:,} rows repeat a uid (the first was taken)",
        ]


def import_captions(
    store: Store, pool: Pool, files: Sequence[str], source: str, uid: str, text: str
) -> Imported:
    """Write the captions of `source` from columns `uid` and `text` of the files."""
    return _import(store, pool, files, captions_folder(source), uid, text, is_caption=True)


def import_scores(
    store: Store, pool: Pool, files: Sequence[str], scorer: str, source: str, uid: str, column: str
) -> Imported:
    """Write the scores of `source` by `scorer` from columns `uid` and `column` of the files."""
    return _import(store, pool, files, scores_folder(scorer, source), uid, column, False)


def _import(
    store: Store,
    pool: Pool,
    files: Sequence[str],
    folder: str,
    uid: str,
    column: str,
    is_caption: bool,
) -> Imported:
    paths = _expand(files)
    config = {"import": [Path(path).name for path in paths], "uid": uid, "column": column}
    config["files"] = hashlib.sha256("\n".join(map(_stamp, paths)).encode()).hexdigest()[:16]
    scratch = tempfile.mkdtemp(prefix="capmix-import-")
    try:
        with duckdb.connect(f"{scratch}/join.duckdb") as connection:
            connection.execute(f"set memory_limit = '{MEMORY}'")
            connection.execute(f"set temp_directory = '{scratch}'")
            _load_samples(connection, store, pool)
            _load_values(connection, paths, uid, column, is_caption)
            unknown, repeated = _faults(connection)
            found = Counts()
            for shard, rows in _by_shard(connection):
                found.add(_write_part(store, f"{folder}/{shard}", shard, rows, config, is_caption))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Imported(found.ok, found.dropped.total(), unknown, repeated)


def _expand(files: Sequence[str]) -> list[str]:
    """Paths of the files and patterns. Raises UserError where there is none or of another kind."""
    paths: list[str] = []
    for name in files:
        here = Path(name)
        found = [here] if here.is_file() else sorted(here.parent.glob(here.name))
        if not found:
            raise UserError(f"import: no file {name}")
        paths += map(str, found)
    for path in paths:
        if Path(path).suffix not in READERS:
            raise UserError(f"import: {path}: expected a file ending in {', '.join(READERS)}")
    if len({Path(path).suffix for path in paths}) > 1:
        raise UserError("import: files of one kind at a time, CSV or parquet")
    return paths


def _stamp(path: str) -> str:
    about = Path(path).stat()
    return f"{Path(path).name} {about.st_size} {about.st_mtime_ns}"


def _load_samples(connection: duckdb.DuckDBPyConnection, store: Store, pool: Pool) -> None:
    """Table `samples`: uid, number of the shard, position, and what its status row says."""
    connection.execute(
        "create table samples (shard varchar, position bigint, uid varchar, key varchar, "
        "status varchar, reason varchar, detail varchar)"
    )
    for shard in pool.shards:
        part = store.read_table(f"{SAMPLES}/{shard.name}.parquet")
        connection.register("part", part)
        connection.execute(
            "insert into samples select ?, row_number() over () - 1, uid, key, status, reason, "
            "detail from part",
            [shard.name],
        )
        connection.unregister("part")


def _load_values(
    connection: duckdb.DuckDBPyConnection, paths: list[str], uid: str, column: str, is_text: bool
) -> None:
    """Table `found`: uid, the value of its first row, and how many rows it stands in."""
    listed = "[" + ", ".join(_quoted(path, "'") for path in paths) + "]"
    reader = READERS[Path(paths[0]).suffix].format(files=listed)
    try:
        have = [row[0] for row in connection.sql(f"describe from {reader}").fetchall()]
        for name in (uid, column):
            if name not in have:
                raise UserError(
                    f"import: {paths[0]}: no column {name!r}; columns: {', '.join(have)}"
                )
        kind = "varchar" if is_text else "float"
        connection.execute(
            f"create table found as select uid, arg_min(value, row) as value, count(*) as rows "
            f"from (select {_quoted(uid)}::varchar as uid, try_cast({_quoted(column)} as {kind}) "
            f"as value, row_number() over () as row from {reader}) where uid is not null "
            "group by uid"
        )
    except duckdb.Error as error:
        raise UserError(f"import: {paths[0]}: {str(error).splitlines()[0]}") from error


def _faults(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    """How many uids the pool does not have, and how many rows repeat a uid."""
    rows = connection.sql(
        "select count(*) filter (where not exists (select 1 from samples s where s.uid = f.uid)), "
        "coalesce(sum(rows - 1), 0)::bigint from found f"
    ).fetchall()
    return int(rows[0][0]), int(rows[0][1])


def _by_shard(
    connection: duckdb.DuckDBPyConnection,
) -> Iterator[tuple[str, Iterator[tuple[Any, ...]]]]:
    """Every sample with its value, shard by shard in pool order."""
    reader = connection.sql(
        "select s.shard, s.uid, s.key, s.status, s.reason, s.detail, f.value from samples s "
        "left join found f on f.uid = s.uid order by s.shard, s.position"
    ).to_arrow_reader(ROWS_AT_ONCE)
    rows = (tuple(row.values()) for batch in reader for row in batch.to_pylist())
    return ((str(shard), here) for shard, here in groupby(rows, key=lambda row: row[0]))


def _write_part(
    store: Store,
    part: str,
    shard: str,
    rows: Iterator[tuple[Any, ...]],
    config: dict[str, Any],
    is_caption: bool,
) -> Counts:
    counts = Counts()
    made: list[Row] = []
    for _, uid, key, status, reason, detail, value in rows:
        row = Row(uid, key, status, reason, detail)
        if status == OK:
            row = _filled(Row(uid, key), value, is_caption)
        made.append(row)
        if row.status == OK:
            counts.ok += 1
        else:
            by_reason = counts.failed if row.status == FAILED else counts.dropped
            by_reason[row.reason or ""] += 1
    store.write_table(
        f"{part}.parquet", table_of(made, CAPTION_FIELDS if is_caption else SCORE_FIELDS)
    )
    inputs = {SAMPLES: store.fingerprint(f"{SAMPLES}/{shard}")}
    store.write_marker(part, Marker(inputs, config, len(made), counts))
    return counts


def _filled(row: Row, value: Any, is_caption: bool) -> Row:
    if value is None or value != value:  # NaN
        return Row(row.uid, row.key, DROPPED, "not_imported", "no value in the imported files")
    if is_caption:
        return caption_rows(row, [Caption(str(value).strip())])[0]
    return Row(row.uid, row.key, values=(0, float(value), None))


def _quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, mark * 2) + mark
