"""The rows of files that are imported, and why some of them give no value.

A row that cannot be read costs that row alone. They go into a DuckDB table `given`: uid, value,
whether the value is no number, and `place`, the number of the file and the row in it. The row of a
CSV's header is row 1, as a spreadsheet counts; the first one of a parquet file is row 1.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
MAX_ROW = 2_000_000  # characters
ROWS_AT_ONCE = 50_000
SIZE_AT_ONCE = 64_000_000  # characters
SKIPPED_AT_ONCE = 1 << 16  # characters
SHOWN = 1000  # characters of the names of a file's columns
FILE = 40  # bits of a place below the number of the file
REASONS = {
    "bad_line": "it has too many or too few columns, a broken quote or line end, or over 2 MB",
    "bad_encoding": "it is not UTF-8",
    "no_uid": "it has no uid",
    "unknown_uid": "no sample of the pool has its uid",
    "duplicate_uid": "the first row of its uid was taken",
    "bad_number": "its value is no finite number",
    "no_value": "its value is missing",
}
BYTES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)
READABLE = (
    *BYTES,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_null,
)
BATCH = pa.schema(
    {"row": pa.int64(), "uid": pa.string(), "value": pa.string(), "reason": pa.string()}
)
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

    Raises UserError for a file that is none of its kind, or that has not both columns, each once
    and of a type that can be read.
    """
    kind = "varchar" if is_caption else "float"
    connection.execute(
        f"create table given (place bigint, uid varchar, value {kind}, is_bad boolean)"
    )
    connection.execute("create table rejected (place bigint, reason varchar)")
    value, is_bad = "value::varchar", "false"
    if not is_caption:
        # DuckDB takes 1_000 for a number, few others do. An infinite score would pass every
        # threshold.
        value = "if(contains(value::varchar, '_'), null, try_cast(value as float))"
        is_bad = f"value is not null and not coalesce(isfinite({value}), false)"
    read = _read_parquet if Path(paths[0]).suffix == ".parquet" else _read_csv
    for number, path in enumerate(paths):
        place = f"({number}::bigint << {FILE}) + row"
        try:
            for batch in read(path, (uid, column)):
                connection.register("batch", batch)
                connection.execute(
                    f"insert into given select {place}, uid::varchar, {value}, {is_bad} from batch "
                    "where reason is null"
                )
                connection.execute(
                    f"insert into rejected select {place}, reason from batch "
                    "where reason is not null"
                )
                connection.unregister("batch")
        except (duckdb.Error, pa.ArrowException, csv.Error, OSError) as error:
            raise UserError(f"import: {path}: {str(error).splitlines()[0]}") from error


def find_faults(connection: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, Fault]:
    """The rows that gave no value by reason, in the order of REASONS; each row counts once.

    Of the table `samples` the uids are those of the pool.
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
            shown = f"{Path(paths[place >> FILE]).name}, row {row}"
            found[reason] = Fault(int(number), shown + (f": uid {uid[:80]}" if uid else ""))
    return found


def check_usable(
    connection: duckdb.DuckDBPyConnection, paths: Sequence[str], faults: dict[str, Fault]
) -> None:
    """Raises UserError where no row gives a value, after find_faults: what was imported before
    stays."""
    (is_usable,) = connection.execute(
        "select count(*) > 0 from given g join firsts f on g.place = f.place "
        "where not g.is_bad and regexp_matches(g.value::varchar, '\\S')"
    ).fetchall()[0]
    if is_usable:
        return
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    why = f"{Path(paths[0]).name} has no row with a value"
    if faults:
        reason, fault = max(faults.items(), key=lambda item: item[1].rows)
        why = f"{fault.example}: {REASONS[reason]}"
    raise UserError(
        f"import: no row of {files} gives a value; {why}; nothing was replaced (--force imports "
        "it all the same)"
    )


class _Lines:
    """The lines of a file of texts, for a reader of CSV.

    A reader that fails goes on with the next line. That is why this is no generator, which would
    end with the first error.
    """

    def __init__(self, stream: TextIO, end: str) -> None:
        self.stream = stream
        self.end = end
        self.begin_row()

    def begin_row(self) -> None:
        self.size = self.quotes = 0  # characters of the row so far

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._read(MAX_ROW + 1)
        if not line:
            raise StopIteration
        if self.size > MAX_ROW:
            # The rest of a quoted text can look like rows.
            while line and (self.quotes % 2 or line[-1] != self.end):
                line = self._read(SKIPPED_AT_ONCE)
            raise csv.Error("the row is too long")
        return line

    def _read(self, most: int) -> str:
        line = self.stream.readline(most)
        self.size += len(line)
        self.quotes += line.count('"')
        return line


class _Batch:
    """Rows of a CSV file, as many as fit into the bounds of a batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str | None, str | None, str | None]] = []
        self.size = 0  # characters

    def add(self, row: int, uid: str | None, value: str | None, reason: str | None) -> None:
        self.rows.append((row, uid, value, reason))
        self.size += len(uid or "") + len(value or "")

    def is_full(self) -> bool:
        return len(self.rows) >= ROWS_AT_ONCE or self.size >= SIZE_AT_ONCE

    def table(self) -> pa.Table:
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * 4
        return pa.Table.from_arrays(
            [pa.array(c, t) for c, t in zip(columns, BATCH.types, strict=True)], schema=BATCH
        )


def _read_csv(path: str, names: tuple[str, str]) -> Iterator[pa.Table]:
    """Tables of row, uid, value, reason; see _read_parquet.

    By Python, which decides where a row ends by all that comes before it. Readers that split a file
    among threads guess, and take lines of quoted texts for rows.
    """
    # The limit is one for the process, and a smaller one would reject rows of other threads.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    end = _line_end(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=end) as stream:
        lines = _Lines(stream, end)
        reader = csv.reader(lines, delimiter=DELIMITERS[Path(path).suffix], strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"import: {path}: its header cannot be read: {error}") from error
        places = _places(path, [_shown(name) for name in header], names)
        row, batch = 1, _Batch()
        while True:
            row += 1
            lines.begin_row()
            try:
                cells = next(reader)
            except StopIteration:
                break
            except csv.Error:
                batch.add(row, None, None, "bad_line")
            else:
                if len(cells) == len(header):
                    uid, value = (cells[place] for place in places)
                    if _is_utf8(uid) and _is_utf8(value):
                        batch.add(row, uid or None, value or None, None)
                    else:
                        batch.add(row, None, None, "bad_encoding")
                elif cells:
                    batch.add(row, None, None, "bad_line")
            if batch.is_full():
                yield batch.table()
                batch = _Batch()
        yield batch.table()


def _line_end(path: str) -> str:
    """What ends the lines: CR in a file whose first line ends so, else LF. CR LF and CR CR LF are
    lines of LF, of which a reader of CSV leaves the CR out."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        first, second = stream.readline(MAX_ROW), stream.readline(2)
    return "\r" if first.endswith("\r") and second not in ("\r\n", "\n") else "\n"


def _read_parquet(path: str, names: tuple[str, str]) -> Iterator[pa.Table]:
    """Tables of row, uid, value, and reason, null where the row could be read.

    By Arrow, which reads texts that are not UTF-8 where DuckDB gives up the file.
    """
    row = 1
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for place in _places(path, schema.names, names):
            _check_type(path, schema.field(place))
        columns = list(dict.fromkeys(names))
        # Threads that read can abort the interpreter when it exits (see Store.read_table).
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
            uid, value = (_plain(batch.column(name)) for name in names)
            good = pa.array(np.logical_and(_are_utf8(uid), _are_utf8(value)))
            yield pa.table(
                {
                    "row": np.arange(row, row + len(batch)),
                    "uid": _texts(pc.if_else(good, uid, None)),
                    "value": _texts(pc.if_else(good, value, None)),
                    "reason": pc.if_else(good, None, "bad_encoding"),
                }
            )
            row += len(batch)


def _places(path: str, have: Sequence[str], names: tuple[str, str]) -> tuple[int, int]:
    """Where the columns are. Raises UserError for one that is not there once."""
    for name in names:
        number = have.count(name)
        if not number:
            shown = ", ".join(have)[:SHOWN]
            raise UserError(f"import: {path}: no column {name!r}; columns: {shown}")
        if number > 1:
            raise UserError(
                f"import: {path}: {number} columns are named {name!r}; rename all but one"
            )
    return have.index(names[0]), have.index(names[1])


def _check_type(path: str, column: pa.Field) -> None:
    """Raises UserError for a column of what is neither texts nor numbers."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(is_of(kind) for is_of in READABLE):
        raise UserError(
            f"import: {path}: column {column.name!r} has type {column.type}; expected texts or "
            "numbers: convert the column"
        )


def _plain(column: pa.Array) -> pa.Array:
    """The values without the encodings that DuckDB or Arrow's functions cannot read."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_float16(column.type):
        return column.cast(pa.float32())
    if any(is_of(column.type) for is_of in BYTES):
        return column.cast(pa.large_binary())
    return column


def _texts(column: pa.Array) -> pa.Array:
    return column.cast(pa.large_string()) if pa.types.is_large_binary(column.type) else column


def _are_utf8(column: pa.Array) -> np.ndarray:
    """bool (rows,): False for bytes that are not UTF-8."""
    if not pa.types.is_large_binary(column.type):
        return np.ones(len(column), bool)
    try:
        column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return np.array([text is None or _is_utf8(text) for text in column.to_pylist()], bool)
    return np.ones(len(column), bool)


def _is_utf8(text: str | bytes) -> bool:
    """Whether bytes are UTF-8, or a text holds none that were not."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8") if isinstance(text, str) else text.decode("utf-8")
    except UnicodeError:
        return False
    return True


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
