"""The rows of files that are imported, and why some of them give no value.

A row that cannot be read costs that row alone. All others have a uid, a value, whether the value is
no number, and a `place`, the number of the file and the row in it. The row of a CSV's header is row
1, as a spreadsheet counts; the first one of a parquet file is row 1.
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
    "select count(distinct m.place), min(m.place), arg_min(m.uid, m.place) from matched m "
    "join firsts f on m.sample = f.sample and m.place = f.place"
)
# How many rows, the place of the first one, its uid. A row is there for each sample of its uid.
COUNTED = {
    "no_uid": "select count(*), min(place), null from matched where uid is null",
    "unknown_uid": "select count(*), min(place), arg_min(uid, place) from matched "
    "where uid is not null and sample is null",
    "duplicate_uid": "select count(distinct m.place), min(m.place), arg_min(m.uid, m.place) "
    "from matched m join firsts f on f.sample = m.sample where f.times > 1 and m.place > f.place",
    "bad_number": f"{OF_FIRSTS} where m.is_bad",
    "no_value": f"{OF_FIRSTS} where m.value is null and not m.is_bad",
}
USABLE = (
    "select 1 from matched m join firsts f on m.sample = f.sample and m.place = f.place "
    "where not m.is_bad and regexp_matches(m.value::varchar, '\\S') limit 1"
)


@dataclass(frozen=True)
class Fault:
    """How many rows gave no value for one reason, and where the first of them is."""

    rows: int
    example: str


class FaultCounts:
    """Rows that gave no value, by reason, and whether any gave one. Each row counts once."""

    def __init__(self) -> None:
        self.is_usable = False
        self._counted: dict[str, tuple[int, int, str | None]] = {}

    def add(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Count those of the tables `matched` and `firsts`, which have all rows of their uids."""
        for reason, query in COUNTED.items():
            self._add(reason, *connection.execute(query).fetchall()[0])
        self.is_usable = self.is_usable or bool(connection.execute(USABLE).fetchall())

    def add_rejected(self, table: pa.Table) -> None:
        """Count those of a table of place and reason that could not be read."""
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
        """By reason, in the order of REASONS."""
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
    """Tables of place, uid, value and is_bad, of all files; rows that cannot be read are counted.

    Raises UserError for a file that is none of its kind, or that has not both columns, each once
    and of a type that can be read.
    """
    value, is_bad = "value::varchar", "false"
    if not is_caption:
        # DuckDB takes 1_000 for a number, few others do. An infinite score would pass every
        # threshold.
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


def rows_about(paths: Sequence[str], row_size: float) -> int:
    """How many rows the files have, about, where one takes `row_size` bytes."""
    rows = 0
    for path in paths:
        if Path(path).suffix != ".parquet":
            rows += int(Path(path).stat().st_size / max(row_size, 1.0))
            continue
        with suppress(OSError, pa.ArrowException):  # it is reported when it is read
            rows += pq.read_metadata(path).num_rows
    return rows


def check_usable(is_usable: bool, paths: Sequence[str], faults: dict[str, Fault]) -> None:
    """Raises UserError where no row gives a value: what was imported before stays."""
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
