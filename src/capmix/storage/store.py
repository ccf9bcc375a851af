"""Work directories: parts, their markers, and the checks that parts are complete and undamaged.

A stage writes one part per shard below its folder, as `<folder>/<shard>.<suffix>` files, through a
draft (draft.py). The marker `.markers/<folder>/<shard>.json` is written last, with the size and
the digest of each file. A part whose marker does not match (other inputs or settings, a missing
column or file, a file of another size) counts as missing. Files are checked against their digests
when they are read.
"""

import contextlib
import io
import json
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from capmix.errors import UserError
from capmix.storage import legacy
from capmix.storage.compare import same_settings
from capmix.storage.draft import Draft, table_bytes
from capmix.storage.filesystem import (
    NotAFileError,
    again,
    files_below,
    is_final,
    open_file_system,
    open_regular,
    replace_file,
)
from capmix.storage.json_text import parse_json
from capmix.storage.layout import ABOUT, MARKERS, RUNNING, SCRATCH
from capmix.storage.lock import folder_lock
from capmix.storage.marker import (
    Marker,
    digest_and_marker,
    marker_bytes,
    marker_digest,
    parse_marker,
)
from capmix.storage.record import FileRecord, RecordingStream
from capmix.storage.temporary import (
    Renewal,
    clock_of,
    is_abandoned,
    is_temporary,
    remove_temporary,
    temporary_name,
)

BUFFER = 1 << 20
RACES = 1000
READERS = 32  # threads that read from a remote store at the same time
MAPPED_FROM = 1 << 22  # bytes: smaller local files are read, larger ones are memory-mapped
LARGEST_MARKER = 1 << 26
READ_WHOLE = 1 << 26  # bytes: larger remote files are read by row groups
ABSENT = (FileNotFoundError, NotADirectoryError)
LEGACY = tuple(f"{folder}/" for folder in legacy.MARKED)


@dataclass(frozen=True)
class _Listing:
    """Snapshot of the files below some folders: sizes by name, and the content of markers."""

    folders: tuple[str, ...]
    sizes: dict[str, int]
    markers: dict[str, bytes]

    def covers(self, name: str) -> bool:
        return name.startswith(self.folders)


class Store:
    """Work directory on a local disk or on any file system that fsspec supports.

    Methods raise OSError if the storage fails; a file that does not exist is not such a failure.
    """

    kind = "work directory"  # in errors

    def __init__(self, location: str, markers: str = MARKERS, scratch: str | None = None):
        self.location = location
        self._markers = markers
        self.scratch_place = scratch
        self._known_whole: dict[str, tuple[str, int, int, int]] = {}
        self._last_remote: tuple[str, str, pa.Buffer] | None = None
        self._renewal = Renewal()
        self.fs, root = open_file_system(location, self.kind)
        self.is_local = "file" in self.fs.protocol
        self.root = Path(os.path.realpath(root)).as_posix() if self.is_local else root.rstrip("/")
        self._listing: _Listing | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out threads and caches, which belong to this process."""
        return vars(self) | {"_renewal": None, "_known_whole": {}, "_last_remote": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renewal = Renewal()

    def reopened(self) -> "Store":
        """Return a copy with its own connections, for another process."""
        again = Store(self.location, self._markers, self.scratch_place)
        again._known_whole = dict(self._known_whole)
        return again

    def path(self, name: str) -> str:
        """Return the full path of a file of this work directory; `name` uses forward slashes."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(again(lambda: self.fs.exists(self.path(name))))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; -1 if it does not exist."""
        if self._listing is not None and self._listing.covers(name):
            return self._listing.sizes.get(name, -1)
        try:
            if self.is_local:
                return os.stat(self.path(name)).st_size
            return int(again(lambda: self.fs.info(self.path(name)))["size"])
        except ABSENT:
            return -1

    @contextlib.contextmanager
    def listed(self, folders: Iterable[str]) -> Iterator[None]:
        """Use a snapshot of the sizes and markers below `folders` within the block.

        On a remote file system, this takes one listing per folder and parallel reads of the
        markers, instead of several sequential calls per part. On a local disk it does nothing.
        """
        if self.is_local:
            yield
            return
        marked = f"{self._markers}/"
        names = tuple(
            f"{top}{folder}/" if folder else top
            for folder in dict.fromkeys(folders)
            for top in (("", marked) if folder else ("",))
        )
        sizes: dict[str, int] = {}
        for name in names:
            found = files_below(self.fs, self.path(name))
            sizes |= {path[len(self.root) + 1 :]: info["size"] for path, info in found.items()}
        markers = [
            name for name in sizes
            if name.endswith(".json") and name.startswith((marked, *LEGACY))
        ]  # fmt: skip
        with ThreadPoolExecutor(READERS) as threads:
            read = dict(zip(markers, threads.map(self._read_if_there, markers), strict=True))
        known = {name: data for name, data in read.items() if data is not None}
        self._listing = _Listing(names, sizes, known)
        try:
            yield
        finally:
            self._listing = None

    def _read_if_there(self, name: str) -> bytes | None:
        with contextlib.suppress(*ABSENT):
            return self.read_bytes(name)
        return None

    def draft(self, part: str) -> "contextlib.AbstractContextManager[Draft]":
        """Return a context manager with the draft of a part, which removes files that are not
        committed within the block."""
        return _draft(self, part)

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[RecordingStream]:
        """Open a file for writing; it appears under its name when the block ends without an error.

        Without `sync`, the file can be lost if the machine crashes soon after. Raises UserError if
        it cannot be written, and OSError if a retry may succeed.
        """
        with self.reporting_errors(name):
            with self.temporary_file(name, sync) as (path, stream):
                yield stream
            try:
                self.put_in_place(path, name)
            except BaseException:
                self.release(path)
                raise

    @contextlib.contextmanager
    def reporting_errors(self, name: str) -> Iterator[None]:
        """Convert permanent storage errors within the block to UserError."""
        try:
            yield
        except OSError as error:
            if not is_final(error):
                raise
            why = error.strerror or error
            raise UserError(f"cannot write {self.path(name)}: {why}") from error

    @contextlib.contextmanager
    def temporary_file(self, name: str, sync: bool = True) -> Iterator[tuple[str, RecordingStream]]:
        """Create a local temporary file for `name`; yield its path and a stream to write to.

        The file is kept until it is put in place or released. An error within the block removes it.
        """
        folder = os.path.dirname(self.path(name)) if self.is_local else self._scratch_base()
        path = f"{folder}/{temporary_name()}"
        try:
            # Before an upload it is in a directory that other users may be able to read.
            with _opened(path, 0o666 if self.is_local else 0o600) as file:
                self._renewal.add(path)
                yield path, RecordingStream(file)
                if sync and self.is_local:
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            self.release(path)
            raise

    def put_in_place(self, path: str, name: str) -> None:
        """Rename a temporary file to `name`, or upload it. A partial file is never visible."""
        if self.is_local:
            replace_file(path, self.path(name))
            self._renewal.remove(path)
        else:
            again(lambda: self.fs.put_file(path, self.path(name)))
            self.release(path)

    def release(self, path: str) -> None:
        """Remove a temporary file."""
        self._renewal.remove(path)
        remove_temporary(path)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """Create a local folder for data that does not fit in memory; remove it after the block.

        Also removes the folders that killed processes have left behind.
        """
        base = self._scratch_base()
        path = f"{base}/{temporary_name()}"
        _make_folder(path)
        _sweep_folder(base)
        with self._renewal.of(path):
            try:
                yield path
            finally:
                remove_temporary(path)
                if self.scratch_place is None and self.is_local:
                    with contextlib.suppress(OSError):
                        os.rmdir(base)

    def _scratch_base(self) -> str:
        if self.scratch_place is not None:
            return self.scratch_place
        return self.path(SCRATCH) if self.is_local else tempfile.gettempdir()

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(*ABSENT):
            if self.is_local:
                os.remove(self.path(name))
            else:
                again(lambda: self.fs.rm_file(self.path(name)))

    def sweep(self) -> None:
        """Remove temporary files of killed processes, and move markers of capmix 0.1.

        For a remote work directory, this only removes local files that were waiting for upload.
        """
        _sweep_folder(self._scratch_base())
        if not self.is_local:
            return
        is_ours, is_used = self.size(ABOUT) >= 0, self.size(RUNNING) >= 0
        left = []
        for path in self.fs.find(self.root):
            name = path[len(self.root) + 1 :]
            if is_ours and not is_used and name.endswith(".json") and name.startswith(LEGACY):
                legacy.adopt(path, self.path(f"{self._markers}/{name}"))
            if is_temporary(path.rpartition("/")[2]):
                left.append(path)
        if left:
            now = clock_of(self.root)
            for path in left:
                if is_abandoned(path, now):
                    remove_temporary(path)

    def new_file(self, name: str) -> BinaryIO:
        """Create a local file that is visible from the start, and return it open for appending."""
        for _ in range(RACES):
            with contextlib.suppress(FileNotFoundError):  # another run removed the empty folder
                return _opened(self.path(name), 0o666)
        return _opened(self.path(name), 0o666)

    def write_bytes(self, name: str, data: bytes, sync: bool = True) -> FileRecord:
        """Write a whole file and return its record."""
        with self.writing(name, sync) as stream:
            stream.write(data)
        return stream.record

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError or NotADirectoryError if there is none."""
        if self._listing is not None and name.endswith(".json") and self._listing.covers(name):
            if name not in self._listing.markers:
                raise FileNotFoundError(name)
            return self._listing.markers[name]
        if self.is_local:  # ten times as fast as fsspec, and a pool has many markers
            return again(lambda: self._read_local(name))
        data: bytes = again(lambda: self.fs.cat_file(self.path(name)))
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, as_lines(value))

    def read_json(self, name: str) -> Any:
        """Parse a JSON file; None if it is missing or is not valid JSON."""
        try:
            return parse_json(self.read_bytes(name))
        except (*ABSENT, ValueError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        self.write_bytes(name, table_bytes(table))

    def read_table(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        record: FileRecord | None = None,
        part: str | None = None,
    ) -> pa.Table:
        """Read a table, or some of its columns.

        The file is checked against `record` or, by default, against its record in the marker of
        `part` (default: the file's name without suffix). Raises UserError if a column is missing or
        the file does not match, and OSError if the storage fails.
        """
        # use_threads=False: threads that read a Python stream can abort or hang the interpreter
        # when it exits (apache/arrow issues 33975 and 50482).

        def read() -> pa.Table:
            with self.open_table(name, record, part) as file:
                have = file.schema_arrow.names
                absent = [column for column in columns or () if column not in have]
                if absent:
                    raise UserError(f"{self.path(name)}: no column {absent[0]!r}, only {have}")
                return file.read(columns, use_threads=False)

        try:
            return read() if self.is_local else again(read)
        except (OSError, pa.ArrowException) as error:
            may_pass = isinstance(error, OSError) and error.errno and not is_final(error)
            if may_pass:  # Arrow's errors about damaged bytes have no errno
                raise
            raise UserError(_unreadable(self.path(name), str(error))) from error

    @contextlib.contextmanager
    def open_table(
        self, name: str, record: FileRecord | None = None, part: str | None = None
    ) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file whose row groups can be read one by one; see read_table.

        The digest is checked when a file is opened for the first time. Without a digest, and in
        remote files larger than READ_WHOLE bytes, the checksum of each page is checked instead,
        when the page is read.
        """
        is_pinned = record is not None
        record = record or self.record(name, part)
        if not self.is_local and (size := self.size(name)) > READ_WHOLE:
            if record is not None and record.size != size:
                difference = record.difference_to(FileRecord(size))
                raise UserError(_unreadable(self.path(name), difference))
            file = again(
                lambda: pq.ParquetFile(
                    self.fs.open(self.path(name), "rb"), page_checksum_verification=True
                )
            )
            try:
                yield file
            finally:
                file.close(force=True)
            return
        whole = pa.BufferReader(self._whole(name, record, part, is_pinned))
        checks_pages = record is None or not record.digest
        with pq.ParquetFile(whole, page_checksum_verification=checks_pages) as file:
            yield file

    def record(self, name: str, part: str | None = None) -> FileRecord | None:
        """Return the record of a file in the marker of `part` (default: its name without suffix).

        None if the marker has no record of the file. Raises UserError if the part is not finished.
        """
        part = part or name.rpartition(".")[0]
        marker = self.read_marker(part)
        if marker is not None:
            return marker.files.get(name)
        if not name.startswith(LEGACY):
            return None
        raise UserError(
            f"{self.path(part)}: no finished part. Run the command that creates it first."
        )

    def compares(self, record: FileRecord) -> bool:
        """Return whether a file with this record is checked against its digest before reading."""
        return bool(record.digest) and (self.is_local or record.size <= READ_WHOLE)

    def _whole(
        self, name: str, record: FileRecord | None, part: str | None, is_pinned: bool = False
    ) -> pa.Buffer:
        """Return all bytes of a file.

        Raises UserError if they do not match its record, and FileNotFoundError if there is no file.
        A record that is not pinned is read again after a mismatch, because another run may just
        have replaced the file and its marker.
        """
        difference = ""
        for _ in range(2):
            last = self._last_remote  # once: another thread may replace it
            if last and record and last[:2] == (name, record.digest):
                return last[2]
            data, state = self._bytes_of(name)
            if record is None or self._known_whole.get(name) == (record.digest, *state):
                return data
            difference = record.difference(data)
            if not difference:
                self._note_whole(name, record, data, state)
                return data
            newer = record if is_pinned else self.record(name, part)
            if newer == record:
                break
            record = newer
        raise UserError(_unreadable(self.path(name), difference))

    def _note_whole(
        self, name: str, record: FileRecord, data: pa.Buffer, state: tuple[int, int, int]
    ) -> None:
        """Remember that the digest of a file matched, to skip the check while it is unchanged."""
        if not record.digest:
            return
        if self.is_local:
            self._known_whole[name] = (record.digest, *state)
        elif record.size > BUFFER:  # for example a subset, which is read many times
            self._last_remote = name, record.digest, data

    def _bytes_of(self, name: str) -> tuple[pa.Buffer, tuple[int, int, int]]:
        """Return the bytes of a file, and for a local file its inode, size and time of change."""
        if not self.is_local:
            data = again(lambda: self.fs.cat_file(self.path(name)))
            return pa.py_buffer(data), (0, 0, 0)
        with self._reading(name) as stream:
            about = os.fstat(stream.fileno())
            state = about.st_ino, about.st_size, about.st_mtime_ns
            # Reads report I/O errors, while an error in a mapping kills the process. Windows cannot
            # replace a file that is mapped.
            if about.st_size < MAPPED_FROM or sys.platform == "win32":
                return pa.py_buffer(stream.read()), state
            return pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), state

    def digest(self, name: str) -> FileRecord:
        """Compute the record of a file from its current content. Raises FileNotFoundError."""

        def read() -> FileRecord:
            state, size = xxhash.xxh3_128(), 0
            with self._reading(name) as stream:
                while data := stream.read(BUFFER):
                    state.update(data)
                    size += len(data)
            return FileRecord(size, state.hexdigest())

        return again(read)

    def _reading(self, name: str) -> Any:
        if self.is_local:
            return open(open_regular(self.path(name)), "rb")
        return self.fs.open(self.path(name), "rb")

    def lines(self, name: str, longest: int) -> Iterator[bytes]:
        """Yield the lines of a file with their ends; lines over `longest` bytes in pieces."""
        with self._reading(name) as stream:
            while line := stream.readline(longest):
                yield line

    def _read_local(self, name: str) -> bytes:
        with self._reading(name) as stream:
            data: bytes = stream.read()
        return data

    def read_part_bytes(self, name: str, part: str | None = None) -> bytes:
        """Read a whole file of a part. Raises UserError if it does not match its marker."""
        try:
            data: bytes = self._whole(name, self.record(name, part), part).to_pybytes()
        except ABSENT as error:
            raise UserError(_unreadable(self.path(name), str(error))) from error
        return data

    def read_array(self, name: str, part: str | None = None) -> np.ndarray:
        """Read an array. Raises UserError if it is missing, unreadable or not as in its marker."""
        try:
            data = self.read_part_bytes(name, part)
            array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(_unreadable(self.path(name), str(error))) from error
        return array

    def write_marker(self, part: str, marker: Marker) -> None:
        """Mark `part` as finished. For computed parts, Draft.commit does this."""
        self.put_marker(self.prepare_marker(part, marker), part)

    def prepare_marker(self, part: str, marker: Marker) -> str:
        """Write a marker to a temporary file, and return its path for put_marker."""
        with self.temporary_file(self._marker(part)) as (path, stream):
            stream.write(marker_bytes(marker))
        return path

    def put_marker(self, path: str, part: str) -> None:
        """Mark `part` as finished, with a marker from prepare_marker."""
        self.put_in_place(path, self._marker(part))
        self._remove_old_marker(part)

    def remove_marker(self, part: str) -> None:
        """Mark `part` as unfinished."""
        self.remove(self._marker(part))
        self._remove_old_marker(part)

    def _remove_old_marker(self, part: str) -> None:
        """Remove a capmix 0.1 marker next to the part, but no other .json file of the user."""
        if self._has_old_marker(part):
            self.remove(f"{part}.json")

    def _has_old_marker(self, part: str) -> bool:
        if not part.startswith(LEGACY) or not 0 <= self.size(f"{part}.json") <= LARGEST_MARKER:
            return False
        with contextlib.suppress(*ABSENT):
            return legacy.is_marker(self.read_bytes(f"{part}.json"))
        return False

    def locked(self, part: str) -> "contextlib.AbstractContextManager[None]":
        """Lock the folder of a part against commits by other processes; only on a local disk."""
        if not self.is_local:
            return contextlib.nullcontext()
        return folder_lock(self.path(self._marker(part)).rpartition("/")[0])

    def read_marker(self, part: str) -> Marker | None:
        """Return the marker of `part`; None if it is missing or damaged."""
        try:
            return parse_marker(self.read_marker_bytes(part), part)
        except ABSENT:
            return None

    def read_marker_bytes(self, part: str) -> bytes:
        """Return the marker of a part as bytes. Raises FileNotFoundError if there is none."""
        try:
            return self.read_bytes(self._marker(part))
        except ABSENT:
            if not part.startswith(LEGACY):
                raise
        with contextlib.suppress(*ABSENT):
            return self.read_bytes(f"{part}.json")
        return self.read_bytes(self._marker(part))  # another process may just have moved it

    def _marker(self, part: str) -> str:
        return f"{self._markers}/{part}.json"

    def fingerprint(self, part: str) -> str:
        """Return the digest of a part's marker, as an input of other parts; "" if missing."""
        try:
            return marker_digest(self.read_marker_bytes(part))
        except ABSENT:
            return ""

    def fingerprint_and_marker(self, part: str) -> tuple[str, Marker | None]:
        """Return fingerprint and read_marker of a part with a single read.

        They are "" and None if the marker is missing. The marker is None if it is damaged.
        """
        try:
            return digest_and_marker(self.read_marker_bytes(part), part)
        except ABSENT:
            return "", None

    def is_done(
        self,
        part: str,
        inputs: dict[str, str],
        config: dict[str, Any],
        defaults: Mapping[str, Any] | None = None,
        columns: Sequence[str] = (),
    ) -> bool:
        """Return whether the part is complete and was created from these inputs and settings.

        It must also have all `columns`. Settings at their `defaults` count as absent.
        """
        marker = self.read_marker(part)
        return (
            marker is not None
            and marker.inputs == inputs
            and same_settings(marker.config, config, defaults or {})
            and marker.columns_missing(columns) == []
            and self.has_sizes(marker)
        )

    def has_sizes(self, marker: Marker) -> bool:
        """Return whether every file of a part exists and has the size that its marker records."""
        return all(self.size(name) == one.size for name, one in marker.files.items())

    def damage(self, marker: Marker) -> dict[str, str]:
        """Return the files of a part that do not match its marker: name -> description.

        Reads all files of the part. Raises OSError if the storage fails.
        """
        found = {}
        for name, one in marker.files.items():
            try:
                found[name] = one.difference_to(self.digest(name))
            except ABSENT:
                found[name] = "missing"
            except NotAFileError:
                found[name] = "not a regular file"
        return {name: how for name, how in found.items() if how}

    def is_gone(self, part: str, marker: Marker) -> bool:
        """Return whether all files of a part have been deleted, but not its marker."""
        return all(self.size(name) < 0 for name in marker.files or [f"{part}.parquet"])

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the direct subfolders of `folder`; empty if it is missing."""
        path = self.path(folder)
        try:
            found = again(lambda: self.fs.ls(path, detail=True))
        except FileNotFoundError:
            return []
        is_folder = (one["type"] == "directory" or self._leads_to_folder(one) for one in found)
        names = (one["name"].rpartition("/")[2] for one in found)
        return sorted(name for name, is_one in zip(names, is_folder, strict=True) if is_one)

    def _leads_to_folder(self, about: Mapping[str, Any]) -> bool:
        """Return whether an entry is a symbolic link to a folder, for example on a larger disk."""
        return bool(about.get("islink")) and os.path.isdir(about["name"])

    def files(self, folder: str) -> list[str]:
        """Return the sorted names of all files below `folder`."""
        found = files_below(self.fs, self.path(folder))
        return sorted(path[len(self.root) + 1 :] for path in found)

    def parts(self, folder: str) -> list[str]:
        """Return the sorted names of the finished parts below `folder`, without suffix."""
        top = f"{self._markers}/"
        marked = [name.removeprefix(top) for name in self.files(f"{top}{folder}".rstrip("/"))]
        parts = {name[: -len(".json")] for name in marked if name.endswith(".json")}
        beside = (name[: -len(".json")] for name in self.files(folder) if name.endswith(".json"))
        return sorted(parts | {part for part in beside if self._has_old_marker(part)})


@contextlib.contextmanager
def _draft(store: Store, part: str) -> Iterator[Draft]:
    draft = Draft(store, part)
    try:
        yield draft
    finally:
        draft.discard()


def _make_folder(path: str) -> None:
    """Create a folder that only its owner can access. Raises UserError if that fails."""
    base = os.path.dirname(path)
    for attempt in range(RACES):
        try:
            os.makedirs(base, exist_ok=True)
            os.mkdir(path, 0o700)
            return
        except OSError as error:
            # Another run may just have removed the empty parent folder.
            is_race = isinstance(error, FileNotFoundError | FileExistsError)
            if not is_race or attempt == RACES - 1:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _sweep_folder(folder: str) -> None:
    """Remove the temporary files and folders directly in `folder` whose process has ended."""
    try:
        names = [name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    now = clock_of(folder) if names else 0.0
    for name in names:
        if is_abandoned(f"{folder}/{name}", now):
            remove_temporary(f"{folder}/{name}")


def as_lines(value: Any) -> bytes:
    """Return the JSON of a value, indented to be readable."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _opened(path: str, mode: int) -> BinaryIO:
    """Create a file, without fsspec, whose wrapper costs more than a small write."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags, mode)

    try:
        return open(path, "xb", buffering=BUFFER, opener=opener)
    except FileNotFoundError:  # another run has just removed the empty folder
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "xb", buffering=BUFFER, opener=opener)


def _unreadable(path: str, why: str) -> str:
    return (
        f"cannot use {path}: {why}. If no other run is writing it, run `capmix verify --discard`, "
        "then rerun the command that created it"
    )
