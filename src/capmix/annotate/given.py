"""Read the rows of imported files, and count the rows without a usable value by reason.

A row that cannot be read does not affect other rows. Each readable row has a uid, a value, a flag
for values that are not numbers, and a `place`: the number of the file and of the row. In a CSV
file, row 1 is the header, as in a spreadsheet; in a parquet file, row 1 is the first row.
"""

import csv
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TextIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.settings.counted import counted

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
MAX_ROW = 2_000_000  # characters
ROWS_AT_ONCE = 50_000
SIZE_AT_ONCE = 64_000_000  # characters
SKIPPED_AT_ONCE = 1 << 16  # characters
SHOWN = 1000  # characters of column names in an error message
FILE = 40  # low bits of a place: the row; the high bits are the number of the file
REASONS = {
    "bad_line": "wrong number of columns, broken quote or line end, or over 2 MB",
    "bad_encoding": "not UTF-8",
    "no_uid": "no uid",
    "unknown_uid": "the uid is not in the pool",
    "duplicate_uid": "repeated uid; the first row was used",
    "bad_number": "the value is not a finite number",
    "no_value": "the value is missing",
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
FIRST_ROWS = (
    "select count(distinct m.place), min(m.place), arg_min(m.uid, m.place) from matched m "
    "join firsts f on m.sample = f.sample and m.place = f.place"
)
# Each query returns the number of rows, the place of the first one, and its uid. `matched` repeats
# a row for each sample with its uid.
COUNTED = {
    "no_uid": "select count(*), min(place), null from matched where uid is null",
    "unknown_uid": "select count(*), min(place), arg_min(uid, place) from matched "
    "where uid is not null and sample is null",
    "duplicate_uid": "select count(distinct m.place), min(m.place), arg_min(m.uid, m.place) "
    "from matched m join firsts f on f.sample = m.sample where f.times > 1 and m.place > f.place",
    "bad_number": f"{FIRST_ROWS} where m.is_bad",
    "no_value": f"{FIRST_ROWS} where m.value is null and not m.is_bad",
}
USABLE = (
    "select 1 from matched m join firsts f on m.sample = f.sample and m.place = f.place "
    "where not m.is_bad and regexp_matches(m.value::varchar, '\\S') limit 1"
)


@dataclass(frozen=True)
class Fault:
    """The number of rows without a usable value for one reason, and the location of the first."""

    rows: int
    example: str


class FaultCounts:
    """Counts of rows without a usable value, by reason. Each row is counted once.

    `is_usable` is set once any row has a usable value.
    """

    def __init__(self) -> None:
        self.is_usable = False
        self._counted: dict[str, tuple[int, int, str | None]] = {}

    def add(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Count the rows of the tables `matched` and `firsts`.

        The tables must contain all rows of each of their uids.
        """
        for reason, query in COUNTED.items():
            self._add(reason, *connection.execute(query).fetchall()[0])
        self.is_usable = self.is_usable or bool(connection.execute(USABLE).fetchall())

    def add_rejected(self, table: pa.Table) -> None:
        """Count unreadable rows, given as a table of place and reason."""
        for group in (
            table.group_by("reason").aggregate([("place", "count"), ("place", "min")]).to_pylist()
        ):
            self._add(group["reason"], group["place_count"], group["place_min"], None)

    def _add(self, reason: str, rows: int, place: int | None, uid: str | None) -> None:
        if not rows or place is None:
            return
        before = self._counted.get(reason, (0, place, uid))
        first = before[1:] if before[1] <= place else (place, uid)
        self._counted[reason] = before[0] + int(rows), *first

    def found(self, paths: Sequence[str]) -> dict[str, Fault]:
        """Return the faults by reason, in the order of REASONS."""
        faults = {}
        for reason in REASONS:
            if reason in self._counted:
                rows, place, uid = self._counted[reason]
                row = place & ((1 << FILE) - 1)
                shown = f"{Path(paths[place >> FILE]).name}, row {row}"
                faults[reason] = Fault(rows, shown + (f": uid {uid[:80]}" if uid else ""))
        return faults


def read_given(
    connection: duckdb.DuckDBPyConnection,
    paths: Sequence[str],
    uid: str,
    column: str,
    is_caption: bool,
    faults: FaultCounts,
) -> Iterator[pa.Table]:
    """Yield tables of place, uid, value and is_bad from all files; unreadable rows are counted.

    Raises UserError if a file is not of the format that its suffix declares, or if it does not have
    both columns exactly once and with a supported type.
    """
    value, is_bad = "value::varchar", "false"
    if not is_caption:
        # DuckDB parses 1_000 as a number, but few other programs do. An infinite score would pass
        # every threshold.
        value = "if(contains(value::varchar, '_'), null, try_cast(value as float))"
        is_bad = f"value is not null and not coalesce(isfinite({value}), false)"
    read = _read_parquet if Path(paths[0]).suffix == ".parquet" else _read_csv
    query = f"select place, uid::varchar as uid, {value} as value, {is_bad} as is_bad from batch"
    for number, path in enumerate(paths):
        try:
            for batch in read(path, (uid, column)):
                places = pc.add(batch["row"], pa.scalar(number << FILE, pa.int64()))
                batch = batch.set_column(0, "place", places)
                if batch["reason"].null_count < len(batch):
                    faults.add_rejected(batch.filter(batch["reason"].is_valid()))
                    batch = batch.filter(batch["reason"].is_null())
                connection.register("batch", batch)
                yield connection.sql(query).to_arrow_table()
                connection.unregister("batch")
        except (duckdb.Error, pa.ArrowException, csv.Error, OSError) as error:
            raise UserError(f"import: {path}: {str(error).splitlines()[0]}") from error


def estimated_rows(paths: Sequence[str], row_size: float) -> int:
    """Estimate the number of rows in the files, for rows of `row_size` bytes."""
    rows = 0
    for path in paths:
        if Path(path).suffix != ".parquet":
            rows += int(Path(path).stat().st_size / max(row_size, 1.0))
            continue
        with suppress(OSError, pa.ArrowException):  # reported when the file is read
            rows += pq.read_metadata(path).num_rows
    return rows


def check_usable(is_usable: bool, paths: Sequence[str], faults: dict[str, Fault]) -> None:
    """Raise UserError if no row has a usable value, so that an earlier import is kept."""
    if is_usable:
        return
    files = counted(len(paths), "file")
    why = f"{Path(paths[0]).name} has no row with a value"
    if faults:
        reason, fault = max(faults.items(), key=lambda item: item[1].rows)
        why = f"{fault.example}: {REASONS[reason]}"
    raise UserError(
        f"import: no row of {files} has a usable value; {why}; nothing was replaced (use --force "
        "to import anyway)"
    )


class _Lines:
    """Iterator over the lines of a text file, for csv.reader.

    After an error, the reader continues with the next line. A generator would be exhausted by the
    first error, so this is a class.
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
            # Skip to the end of the row: the rest of a quoted text could look like rows.
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
    """Rows of a CSV file, up to the limits of a batch."""

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
    """Yield tables of row, uid, value and reason; see _read_parquet.

    Uses Python's csv module, which determines the end of a row from everything before it. Readers
    that split a file among threads guess, and mistake lines of quoted texts for rows.
    """
    # The limit is global, and a smaller one would reject rows in other threads.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW))
    end = _line_end(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=end) as stream:
        lines = _Lines(stream, end)
        reader = csv.reader(lines, delimiter=DELIMITERS[Path(path).suffix], strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise UserError(f"import: {path}: cannot read the header: {error}") from error
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
    """Return the line end: CR if the first line ends with CR only, else LF.

    CR LF and CR CR LF count as LF, because csv.reader strips the CR.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        first, second = stream.readline(MAX_ROW), stream.readline(2)
    return "\r" if first.endswith("\r") and second not in ("\r\n", "\n") else "\n"


def _read_parquet(path: str, names: tuple[str, str]) -> Iterator[pa.Table]:
    """Yield tables of row, uid, value and reason; the reason is null for readable rows.

    Uses Arrow, which can read texts that are not UTF-8, where DuckDB fails on the whole file.
    """
    row = 1
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        for place in _places(path, schema.names, names):
            _check_type(path, schema.field(place))
        columns = list(dict.fromkeys(names))
        # Reader threads can abort the interpreter at exit (see Store.read_table).
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
            uid, value = (_plain(batch.column(name)) for name in names)
            good = np.logical_and(_are_utf8(uid), _are_utf8(value))
            reasons = pa.nulls(len(batch), pa.string())
            if not good.all():
                uid, value = (pc.if_else(good, column, None) for column in (uid, value))
                reasons = pc.if_else(good, None, "bad_encoding")
            yield pa.table(
                {
                    "row": np.arange(row, row + len(batch)),
                    "uid": _texts(uid),
                    "value": _texts(value),
                    "reason": reasons,
                }
            )
            row += len(batch)


def _places(path: str, have: Sequence[str], names: tuple[str, str]) -> tuple[int, int]:
    """Return the positions of the columns. Raises UserError if one does not exist exactly once."""
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
    """Raise UserError for a column that holds neither texts nor numbers."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(is_of(kind) for is_of in READABLE):
        raise UserError(
            f"import: {path}: column {column.name!r} has type {column.type}; expected texts or "
            "numbers: convert the column"
        )


def _plain(column: pa.Array) -> pa.Array:
    """Convert types and encodings that DuckDB or Arrow's functions do not support."""
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
    """Return bool (rows,): False for bytes that are not UTF-8."""
    if not pa.types.is_large_binary(column.type):
        return np.ones(len(column), bool)
    try:
        column.cast(pa.large_string())
    except pa.ArrowInvalid:
        return np.array([text is None or _is_utf8(text) for text in column.to_pylist()], bool)
    return np.ones(len(column), bool)


def _is_utf8(text: str | bytes) -> bool:
    """Whether bytes are UTF-8, or a text was decoded without surrogate escapes."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8") if isinstance(text, str) else text.decode("utf-8")
    except UnicodeError:
        return False
    return True


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
