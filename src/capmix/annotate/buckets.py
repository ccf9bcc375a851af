"""Partition rows into buckets by number, so that each bucket can be read by itself."""

import os

import numpy as np
import pyarrow as pa

from capmix.errors import UserError

ROWS_AT_ONCE = 1_000_000
SIZE_AT_ONCE = 1 << 28  # bytes


class Buckets:
    """Tables of one schema: a single bucket is kept in memory, several are kept in a file each.

    Until `count` is set, it is 0 and all rows are in memory. Rows keep their order within a bucket.
    """

    def __init__(self, path: str, schema: pa.Schema, count: int = 0):
        """Set `path`, the prefix of the files' names."""
        self.count = count
        self._path, self._schema = path, schema
        self._buffer: list[tuple[pa.Table, np.ndarray]] = []
        self.rows = self.size = 0  # rows in memory, and their bytes

    def add(self, table: pa.Table, numbers: np.ndarray) -> None:
        """Add each row to the bucket of its number modulo `count`.

        Raises UserError if a file cannot be written.
        """
        self._buffer.append((table, numbers))
        self.rows, self.size = self.rows + len(table), self.size + table.nbytes
        if self.is_full and self.count > 1:
            self._write()

    @property
    def is_full(self) -> bool:
        """Whether the rows in memory have reached the limit."""
        return self.rows >= ROWS_AT_ONCE or self.size >= SIZE_AT_ONCE

    def take(self, number: int) -> pa.Table:
        """Remove all rows from a bucket and return them."""
        if self.count > 1:
            self._write()
            return self._read(number)
        tables = [self._schema.empty_table(), *(table for table, _ in self._buffer)]
        self._buffer.clear()
        return pa.concat_tables(tables)

    def _write(self) -> None:
        if not self._buffer:
            return
        tables, numbers = zip(*self._buffer, strict=True)
        self._buffer.clear()
        self.rows = self.size = 0
        # 16-bit integers are sorted by radix sort.
        of_rows = (np.concatenate(numbers) % self.count).astype(np.min_scalar_type(self.count))
        order = np.argsort(of_rows, kind="stable")
        # Combine first: take() on a table of several chunks would copy them all in each call.
        table = pa.concat_tables(tables).combine_chunks().take(pa.array(order))
        bounds = np.searchsorted(of_rows[order], np.arange(self.count + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            self._append(number, table[bounds[number] : bounds[number + 1]])

    def _append(self, number: int, table: pa.Table) -> None:
        """Append rows to a bucket's file.

        The file is opened for each call, since the number of buckets may exceed the limit of open
        files.
        """
        path = self._file(number)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        try:
            with (
                open(path, "ab") as file,
                pa.ipc.new_stream(file, self._schema, options=options) as stream,
            ):
                stream.write_table(table)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error

    def _read(self, number: int) -> pa.Table:
        path, tables = self._file(number), [self._schema.empty_table()]
        if os.path.exists(path):
            with pa.memory_map(path) as file:
                while file.tell() < file.size():
                    with pa.ipc.open_stream(file) as stream:
                        tables.append(stream.read_all())
            os.remove(path)
        return pa.concat_tables(tables)

    def _file(self, number: int) -> str:
        return f"{self._path}.{number}.arrow"


def group_adjacent(sizes: np.ndarray, most: float) -> np.ndarray:
    """Group adjacent items so that the sizes in each group add up to about `most`.

    Returns the number of each item's group, int64 (sizes,), starting with 0.
    """
    ends = np.cumsum(sizes)
    numbers: np.ndarray = np.unique((ends - sizes) // most, return_inverse=True)[1]
    return numbers
