"""Rows set apart by number, so that those of one number can be read without the others."""

import os

import numpy as np
import pyarrow as pa

from capmix.errors import UserError

ROWS_AT_ONCE = 1_000_000
SIZE_AT_ONCE = 1 << 28  # bytes


class Buckets:
    """Tables of one schema: in memory where there is one bucket, else in a file for each.

    `count` is 0 until it is set, and all rows are in memory so long. Rows keep their order within a
    bucket.
    """

    def __init__(self, path: str, schema: pa.Schema, count: int = 0):
        """The files' names begin with `path`."""
        self.count = count
        self._path, self._schema = path, schema
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self.rows = self.size = 0  # those in memory, and their bytes

    def add(self, table: pa.Table, numbers: np.ndarray) -> None:
        """Put each row into the bucket of its number modulo `count`. Raises UserError where it
        cannot be written."""
        self._waiting.append((table, numbers))
        self.rows, self.size = self.rows + len(table), self.size + table.nbytes
        if self.is_full and self.count > 1:
            self._write()

    @property
    def is_full(self) -> bool:
        """Whether as many rows are in memory as should be."""
        return self.rows >= ROWS_AT_ONCE or self.size >= SIZE_AT_ONCE

    def take(self, number: int) -> pa.Table:
        """All rows of a bucket, which is empty from then on."""
        if self.count > 1:
            self._write()
            return self._read(number)
        tables = [self._schema.empty_table(), *(table for table, _ in self._waiting)]
        self._waiting.clear()
        return pa.concat_tables(tables)

    def _write(self) -> None:
        if not self._waiting:
            return
        tables, numbers = zip(*self._waiting, strict=True)
        self._waiting.clear()
        self.rows = self.size = 0
        # Of numbers of 16 bits the order is found in one pass.
        of_rows = (np.concatenate(numbers) % self.count).astype(np.min_scalar_type(self.count))
        order = np.argsort(of_rows, kind="stable")
        # One piece: from several each take would copy all of them first.
        table = pa.concat_tables(tables).combine_chunks().take(pa.array(order))
        bounds = np.searchsorted(of_rows[order], np.arange(self.count + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            self._append(number, table[bounds[number] : bounds[number + 1]])

    def _append(self, number: int, table: pa.Table) -> None:
        """The file is opened for each piece: there may be more buckets than files can be open."""
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


def neighbours(sizes: np.ndarray, most: float) -> np.ndarray:
    """int64 (sizes,): numbers from 0 on, the same for neighbours whose sizes add up to about
    `most`."""
    ends = np.cumsum(sizes)
    numbers: np.ndarray = np.unique((ends - sizes) // most, return_inverse=True)[1]
    return numbers
