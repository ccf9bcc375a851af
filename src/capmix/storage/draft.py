"""Draft of a part: its files are written under temporary names and then moved into place.

`commit` writes the new marker under a temporary name, removes the old marker of the part, and
renames first the files and then the marker. If the process dies between two of these steps, the
part is unfinished and is recomputed. If two runs compute the same part, the first one wins: the
second one detects the new marker.
"""

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.storage.marker import Marker, marker_bytes, parse_marker
from capmix.storage.record import FileRecord, RecordingStream

REPEATING = ("status", "reason", "detail", "finish", "shard", "source")


class MadeMeanwhileError(Exception):
    """Another run finished the same part after this run started it."""


class OtherMadeError(UserError):
    """Another run finished the same part meanwhile, with different inputs or settings."""

    def __init__(self, message: str, has_same_settings: bool):
        super().__init__(message)
        self.has_same_settings = has_same_settings


class Directory(Protocol):
    """Methods of the work directory that a draft uses; see Store."""

    @property
    def is_local(self) -> bool: ...
    def path(self, name: str) -> str: ...
    def reporting_errors(self, name: str) -> AbstractContextManager[None]: ...
    def temporary_file(self, name: str) -> AbstractContextManager[tuple[str, RecordingStream]]: ...
    def put_in_place(self, path: str, name: str) -> None: ...
    def release(self, path: str) -> None: ...
    def remove(self, name: str) -> None: ...
    def fingerprint(self, part: str) -> str: ...
    def locked(self, part: str) -> AbstractContextManager[None]: ...
    def read_marker(self, part: str) -> Marker | None: ...
    def remove_marker(self, part: str) -> None: ...
    def prepare_marker(self, part: str, marker: Marker) -> str: ...
    def put_marker(self, path: str, part: str) -> None: ...


class Draft:
    """Files of `part` that become visible when they are committed.

    `files` has the record of each completely written file.
    """

    def __init__(self, store: Directory, part: str):
        self.store, self.part = store, part
        self.files: dict[str, FileRecord] = {}
        self._temporary: dict[str, str] = {}
        self._before = store.fingerprint(part)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[RecordingStream]:
        """Open a file of the part for writing.

        Raises UserError if it cannot be written, and OSError if a retry may succeed.
        """
        with self.store.reporting_errors(name), self.store.temporary_file(name) as (path, stream):
            yield stream
        self.discard(name)
        self._temporary[name], self.files[name] = path, stream.record

    def write_bytes(self, name: str, data: bytes) -> None:
        with self.writing(name) as stream:
            stream.write(data)

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_bytes(name, table_bytes(table))

    def write_array(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write_bytes(name, buffer.getbuffer())  # type: ignore[arg-type]

    def commit(self, marker: Marker) -> Marker:
        """Move the files into place and mark the part as finished.

        Returns the marker as it is read back, so that this run sees the same marker as later runs.
        Raises MadeMeanwhileError if another run has finished the part with the same inputs and
        settings, OtherMadeError (a UserError) if with different ones, and ValueError if the counts
        of `marker` do not add up.
        """
        marker = replace(marker, files=self.files | marker.files)
        read_back = parse_marker(marker_bytes(marker), self.part)
        assert read_back is not None, f"{self.part}: a marker that cannot be read back"
        prepared = ""
        try:
            with self.store.locked(self.part):
                self._refuse_others(read_back)
                prepared = self.store.prepare_marker(self.part, marker)
                self._put_in_place(marker)
                self.store.put_marker(prepared, self.part)
        finally:
            if prepared:
                self.store.release(prepared)
        return read_back

    def _put_in_place(self, marker: Marker) -> None:
        """Replace the old files and remove the old marker.

        From the first step on, the old part counts as unfinished: it lacks a file or its marker.
        """
        swept = [path for path in self._temporary.values() if not os.path.exists(path)]
        if swept:
            raise OSError(errno.ESTALE, f"{swept[0]} was removed while it was in use")
        before = self.store.read_marker(self.part)
        for name in sorted((before.files if before else {}).keys() - marker.files.keys()):
            self.store.remove(name)
        self.store.remove_marker(self.part)
        for name, path in list(self._temporary.items()):
            with self.store.reporting_errors(name):
                self.store.put_in_place(path, name)
            del self._temporary[name]

    def discard(self, name: str | None = None) -> None:
        """Remove the temporary file of `name`; by default all temporary files."""
        for one in [name] if name is not None else list(self._temporary):
            if path := self._temporary.pop(one, None):
                self.store.release(path)

    def _refuse_others(self, marker: Marker) -> None:
        now = self.store.fingerprint(self.part)
        if now == self._before or not now:
            return
        found = self.store.read_marker(self.part)
        if found is None:
            return
        if (found.inputs, found.config) == (marker.inputs, marker.config):
            raise MadeMeanwhileError(self.part)
        raise OtherMadeError(
            f"{self.store.path(self.part)}: a concurrent run has written this part with different "
            "settings or inputs; the output of this run is discarded. Run one after the other, or "
            "use a different name for each.",
            found.config == marker.config,
        )


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **parquet_options(table.schema))
    return buffer.getvalue()


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of the Parquet writer, with dictionaries only for repetitive columns.

    For uids and captions, a dictionary costs a third of the time for writing and reading and saves
    no space. Page checksums are for readers that do not have the digest of the file.
    """
    repeating = [name for name in schema.names if name in REPEATING]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": repeating,
        "write_page_checksum": True,
    }
