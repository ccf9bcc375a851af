"""Read the files of `--exclude`: uids, URLs, SHA-256 or perceptual hashes of samples to leave out.

A file is text (one entry per line), CSV or TSV with a header, or parquet. Entries are stored as the
128 bits of their md5, sorted, so that 10 million need 160 MB. A line that cannot be an entry of its
kind is counted, and the first one is kept for a message.
"""

import csv
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.errors import UserError, reason
from capmix.mix.uids import MAX_UIDS, PAIR, SortedPairs, digest_of, pairs_of
from capmix.storage.filesystem import READ_FLAGS

# What an entry of each kind looks like.
TEXT = r"^[^\x00-\x1f\x7f\x{fffd}]+$"  # without control characters and bytes that are not UTF-8
PATTERNS = {
    "uid": TEXT,
    "url": TEXT,
    "sha256": r"^[0-9A-Fa-f]{64}$",
    "phash": r"^[0-9A-Fa-f]{16}$",
}
OPTION = "--exclude"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
MAX_LINE = 1 << 16  # characters
ROWS_AT_ONCE = 1 << 16
TEXT_AT_ONCE = 1 << 24  # characters
SHOWN = 60  # characters of a faulty entry in a message

Rows = Iterator[tuple[int, pa.Array]]


@dataclass(frozen=True)
class ExcludeList:
    """The entries of one kind: their md5s.

    `malformed` counts the lines that are no entries; `example` is the first of them.
    """

    kind: str
    pairs: SortedPairs = field(repr=False)
    malformed: int = 0
    example: str = ""

    @property
    def digest(self) -> str:
        """A digest of the entries, 32 hex digits; their order and repeats do not matter."""
        return digest_of(self.pairs)


def md5_pairs(connection: duckdb.DuckDBPyConnection, kind: str, values: pa.Array) -> np.ndarray:
    """Return the md5 of N values as PAIR (N,); values must not be null.

    Texts of SHA-256 and perceptual hashes are compared in lower case. A perceptual hash may also be
    a 64-bit integer, which stands for its 16 hex digits.
    """
    text = "v" if kind in ("uid", "url") else "lower(v)"
    if pa.types.is_integer(values.type):
        values = values.cast(pa.uint64(), safe=False)  # the bits of a negative int64
        text = "format('{:016x}', v)" if kind == "phash" else "v::VARCHAR"
    connection.register("entries", pa.table({"v": values}))
    try:
        found = connection.sql(f"select md5({text}) as v from entries").to_arrow_table()["v"]
    finally:
        connection.unregister("entries")
    return pairs_of(found.combine_chunks())


def split_kind(given: str) -> tuple[str | None, str]:
    """Split `KIND:FILE` into kind and path; the kind is None if the option has only a path."""
    kind, colon, path = given.partition(":")
    return (kind, path) if colon and path and kind in PATTERNS else (None, given)


def read_excluded(
    given: Sequence[str], connection: duckdb.DuckDBPyConnection
) -> dict[str, ExcludeList]:
    """Read the files of `--exclude` (`FILE` or `KIND:FILE`), and return the entries by kind.

    Raises UserError for a file that cannot be read, that lists no entry, or whose kind is unknown.
    """
    collected: dict[str, _Collected] = {}
    for one in given:
        kind, path = split_kind(one)
        try:
            kind, rows = _open(path, kind)
            before = collected.setdefault(kind, _Collected(kind))
            if not before.add(rows, path, connection):
                raise UserError(f"{OPTION} {path}: no {kind} in it{before.about_faults()}")
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            line = (reason(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{OPTION} {path}: {line}") from error
    return {kind: collected[kind].list() for kind in PATTERNS if kind in collected}


@dataclass
class _Collected:
    """Entries of one kind, in the order of the files."""

    kind: str
    pairs: list[np.ndarray] = field(default_factory=list)
    count: int = 0
    malformed: int = 0
    example: str = ""

    def add(self, rows: Rows, path: str, connection: duckdb.DuckDBPyConnection) -> int:
        """Add the entries of a file; return their number."""
        before = self.count
        for first, values in rows:
            texts = values
            if not pa.types.is_integer(values.type):
                texts = pc.utf8_trim_whitespace(values)
                is_good = pc.match_substring_regex(texts, PATTERNS[self.kind])
                is_blank = pc.fill_null(pc.equal(pc.binary_length(texts), 0), True)
                is_faulty = pc.fill_null(pc.and_not(pc.invert(is_good), is_blank), False)
                faulty = np.flatnonzero(is_faulty.to_numpy(False))
                self._count_faults(faulty, first, texts, path)
                texts = texts.filter(is_good)
            texts = texts.drop_null()
            self.pairs.append(md5_pairs(connection, self.kind, texts))
            self.count += len(texts)
            if self.count > MAX_UIDS:
                raise ValueError(f"more than {MAX_UIDS:,} entries")
        return self.count - before

    def _count_faults(self, faulty: np.ndarray, first: int, texts: pa.Array, path: str) -> None:
        if len(faulty) and not self.malformed:
            text = texts[int(faulty[0])].as_py()[:SHOWN]
            self.example = f"{Path(path).name}, line {first + int(faulty[0])}: {text!r}"
        self.malformed += len(faulty)

    def about_faults(self) -> str:
        return f"; the first malformed line is {self.example}" if self.malformed else ""

    def list(self) -> ExcludeList:
        pairs = np.concatenate([np.empty(0, PAIR), *self.pairs])
        self.pairs = []  # frees them before sorting, which needs memory
        return ExcludeList(self.kind, SortedPairs(pairs), self.malformed, self.example)


def _open(path: str, kind: str | None) -> tuple[str, Rows]:
    """Return the kind of a file's entries, and its rows: the number of the first, and the values.

    Line 1 of a CSV file is its header; row 1 of a parquet file is its first row.
    """
    descriptor = os.open(path, os.O_RDONLY | READ_FLAGS)  # reading a FIFO would block
    with os.fdopen(descriptor, "rb"):
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
        name, kind = _column(path, names, kind)
        return kind, _parquet_rows(path, name, kind)
    if suffix in DELIMITERS:
        with _text(path) as text:
            header = next(csv.reader(_lines(text), delimiter=DELIMITERS[suffix]), [])
        name, kind = _column(path, header, kind)
        return kind, _csv_rows(path, DELIMITERS[suffix], header.index(name))
    with _text(path) as text:
        first = next(_lines(text), "").strip().lower()
    if kind is None and first not in PATTERNS:
        raise UserError(
            f"{OPTION} {path}: what does it list? Write uid:{path} (or url:, sha256:, phash:), or "
            "put one of these words into its first line"
        )
    if kind is not None and first in PATTERNS and first != kind:
        raise UserError(f"{OPTION} {path}: its first line is {first}; expected {kind}")
    return kind or first, _text_rows(path, skip=first in PATTERNS)


def _column(path: str, names: Sequence[str], kind: str | None) -> tuple[str, str]:
    """Return the column to read, and its kind: one named like a kind, or the only column."""
    of_kind = {name.strip().lower(): name for name in names}
    found = [one for one in PATTERNS if one in of_kind and kind in (None, one)]
    if len(found) == 1:
        return of_kind[found[0]], found[0]
    if kind is not None and len(names) == 1:
        return names[0], kind
    have = ", ".join(names)[:1000] or "none"
    if found:
        raise UserError(
            f"{OPTION} {path}: columns {', '.join(found)}: choose one, for example "
            f"{found[0]}:{path}"
        )
    wanted = kind or ", ".join(PATTERNS)
    raise UserError(f"{OPTION} {path}: no column {wanted}; columns: {have}")


def _text(path: str) -> TextIO:
    return open(path, encoding="utf-8-sig", errors="replace", newline="\n")


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines. Raises ValueError for a line that is too long."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE:,} characters")
        yield line


def _text_rows(path: str, skip: bool) -> Rows:
    with _text(path) as stream:
        lines = _lines(stream)
        first = 1
        if skip:
            next(lines, None)
            first = 2
        yield from _batches(lines, first)


def _csv_rows(path: str, delimiter: str, column: int) -> Rows:
    """Yield the values of a column. A row of several lines counts as one line."""
    with _text(path) as stream:
        reader = csv.reader(_lines(stream), delimiter=delimiter)
        next(reader, None)
        # A row that lacks the column is malformed, not blank.
        values = (
            cells[column] if len(cells) > column else "\ufffd" if cells else "" for cells in reader
        )
        yield from _batches(values, 2)


def _batches(values: Iterable[str], first: int) -> Rows:
    """Yield batches of ROWS_AT_ONCE values, or of fewer with about TEXT_AT_ONCE characters."""
    batch: list[str] = []
    size = 0
    for value in values:
        batch.append(value)
        size += len(value)
        if len(batch) == ROWS_AT_ONCE or size >= TEXT_AT_ONCE:
            yield first, pa.array(batch, pa.string())
            batch, size, first = [], 0, first + len(batch)
    yield first, pa.array(batch, pa.string())


def _parquet_rows(path: str, column: str, kind: str) -> Rows:
    first = 1
    with pq.ParquetFile(path) as file:
        # Reader threads can abort the interpreter at exit (see Store.read_table).
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column], use_threads=False):
            values = batch.column(0)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
            if not pa.types.is_integer(values.type) or kind != "phash":
                values = values.cast(pa.string())
            yield first, values
            first += len(batch)
