"""The rows of files that are imported, and why some of them give no value.

A row that cannot be read costs that row alone. They go into a DuckDB table `given`: uid, value,
whether the value is no number, and `place`, the number of the file and the row in it. The row of a
CSV's header is row 1, as a spreadsheet counts; the first one of a parquet file is row 1.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
ROWS_AT_ONCE = 50_000
FILE = 40  # bits of a place below the number of the file
REASONS = {
    "bad_line": "it has too many or too few columns, an open quote, or over 2 MB",
    "bad_encoding": "it is not UTF-8",
    "no_uid": "it has no uid",
    "unknown_uid": "no sample of the pool has its uid",
    "duplicate_uid": "the first row of its uid was taken",
    "bad_number": "its value is no finite number",
    "no_value": "its value is missing",
}
UNREADABLE = ("bad_line", "bad_encoding")
OF_FIRSTS = (
    "select count(*), min(g.place), arg_min(g.uid, g.place) from given g "
    "join firsts f on g.place = f.place"
)
COUNTED = {  # how many rows, the place of the first one, its uid
    "no_uid": "select count(*), min(place), null from given where uid is null",
    "unknown_uid": "select count(*), min(place), arg_min(uid, place) from given "
    "where uid is not null and uid not in (select uid from samples)",
    "duplicate_uid": "select count(*), min(g.place), arg_min(g.uid, g.place) from given g "
    "join firsts f on f.uid = g.uid where f.times > 1 and g.place > f.place",
    "bad_number": f"{OF_FIRSTS} where g.is_bad",
    "no_value": f"{OF_FIRSTS} where g.value is null and not g.is_bad",
}


@dataclass(frozen=True)
class Fault:
    """How many rows gave no value for one reason, and where the first of them is."""

    rows: int
    example: str


def load_given(
    connection: duckdb.DuckDBPyConnection,
    paths: Sequence[str],
    uid: str,
    column: str,
    is_caption: bool,
) -> None:
    """Make the tables `given` and `rejected`, of rows that could not be read, of all files.

    Raises UserError for a file that is none of its kind or has not both columns.
    """
    kind = "varchar" if is_caption else "float"
    connection.execute(
        f"create table given (place bigint, uid varchar, value {kind}, is_bad boolean)"
    )
    connection.execute("create table rejected (place bigint, reason varchar)")
    value, is_bad = f"try_cast(value as {kind})", "false"
    if not is_caption:  # an infinite score would pass every threshold
        is_bad = f"value is not null and not coalesce(isfinite({value}), false)"
    insert = f"insert into given select {{place}}, uid::varchar, {value}, {is_bad} from {{rows}}"
    load = _load_parquet if Path(paths[0]).suffix == ".parquet" else _load_csv
    for number, path in enumerate(paths):
        try:
            load(connection, insert, number, path, (uid, column))
        except (duckdb.Error, pa.ArrowException, csv.Error, OSError) as error:
            raise UserError(f"import: {path}: {str(error).splitlines()[0]}") from error


def find_faults(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, Fault]:
    """The rows that gave no value by reason, in the order of REASONS; each row counts once.

    Of the table `samples` the uids are those of the pool. Raises UserError where not one row could
    be read: captions that were imported before stay.
    """
    connection.execute(
        "create table firsts as select uid, min(place) as place, count(*) as times from given "
        "where uid in (select uid from samples) group by uid"
    )
    counted: dict[str, tuple[int, int | None, str | None]] = {}
    for reason, number, place in connection.execute(
        "select reason, count(*), min(place) from rejected group by reason"
    ).fetchall():
        counted[reason] = number, place, None
    for reason, query in COUNTED.items():
        counted[reason] = connection.execute(query).fetchall()[0]
    found = {}
    for reason in REASONS:
        number, place, uid = counted.get(reason, (0, None, None))
        if number and place is not None:
            row = place & ((1 << FILE) - 1)
            if reason not in UNREADABLE:
                row = _row_in_file(connection, paths, place)
            shown = f"{Path(paths[place >> FILE]).name}, row {row}"
            found[reason] = Fault(int(number), shown + (f": uid {uid[:80]}" if uid else ""))
    (is_empty,) = connection.execute("select count(*) = 0 from given").fetchall()[0]
    if is_empty and found:
        reason, fault = next(iter(found.items()))
        raise UserError(
            f"import: no row of {len(paths)} files can be read; {fault.example}: {REASONS[reason]}"
        )
    return found


def _row_in_file(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], place: int) -> int:
    """Rows that a CSV reader leaves out are not in the number that it gives the next one."""
    number, row = place >> FILE, place & ((1 << FILE) - 1)
    if Path(paths[number]).suffix not in DELIMITERS:
        return row
    left_out = connection.execute(
        "select place from rejected where place >> ? = ? order by place", [FILE, number]
    )
    while batch := left_out.fetchmany(ROWS_AT_ONCE):
        for (other,) in batch:
            if other & ((1 << FILE) - 1) > row:
                return row
            row += 1
    return row


def _load_csv(
    connection: duckdb.DuckDBPyConnection,
    insert: str,
    number: int,
    path: str,
    names: tuple[str, str],
) -> None:
    delimiter = DELIMITERS[Path(path).suffix]
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as stream:
        header = next(csv.reader(stream, delimiter=delimiter), [])
    uid, value = _places(path, header, names)
    columns = ", ".join(f"'c{i}': 'varchar'" for i in range(len(header)))
    # Looking for a dialect stops at the first broken line; this one is known.
    rows = (
        f"(select c{uid} as uid, c{value} as value, row_number() over () as row from read_csv(?, "
        f"delim='{delimiter}', quote='\"', escape='\"', header=true, auto_detect=false, "
        f"columns={{{columns}}}, store_rejects=true, rejects_limit=0, "
        f"rejects_table='errors_{number}', rejects_scan='scans_{number}'))"
    )
    first = f"({number}::bigint << {FILE})"
    connection.execute(insert.format(place=f"{first} + row + 1", rows=rows), [path])
    connection.execute(
        f"insert into rejected select {first} + line, "
        "if(bool_or(error_type::varchar like 'INVALID%'), 'bad_encoding', 'bad_line') "
        f"from errors_{number} group by line"
    )
    for table in ("errors", "scans"):
        connection.execute(f"drop table {table}_{number}")


def _load_parquet(
    connection: duckdb.DuckDBPyConnection,
    insert: str,
    number: int,
    path: str,
    names: tuple[str, str],
) -> None:
    """By Arrow, which reads texts that are not UTF-8 where DuckDB gives up the file."""
    row, first = 0, f"({number}::bigint << {FILE})"
    with pq.ParquetFile(path) as file:
        _places(path, file.schema_arrow.names, names)
        columns = list(dict.fromkeys(names))
        # Threads that read can abort the interpreter when it exits (see Store.read_table).
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
            uid, value = (_decoded(batch.column(name)) for name in names)
            good = pa.array(np.logical_and(_are_utf8(uid), _are_utf8(value)))
            rows = pa.array(np.arange(row + 1, row + 1 + len(batch)))
            table = pa.table({"uid": uid, "value": value, "row": rows})
            connection.register("batch", table.filter(good))
            connection.execute(insert.format(place=f"{first} + row", rows="batch"))
            connection.register("bad", pa.table({"row": rows}).filter(pc.invert(good)))
            connection.execute(
                f"insert into rejected select {first} + row, 'bad_encoding' from bad"
            )
            row += len(batch)


def _places(path: str, have: Sequence[str], names: tuple[str, str]) -> tuple[int, int]:
    """Where the columns are. Raises UserError for one that is not there."""
    for name in names:
        if name not in have:
            raise UserError(f"import: {path}: no column {name!r}; columns: {', '.join(have)}")
    return have.index(names[0]), have.index(names[1])


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _are_utf8(column: pa.Array) -> np.ndarray:
    """bool (rows,): False for texts that are not UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        texts = column.cast(pa.large_binary()).to_pylist()
        return np.array([text is None or _is_utf8(text) for text in texts], bool)
    return np.ones(len(column), bool)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
