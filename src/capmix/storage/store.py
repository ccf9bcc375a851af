"""Parts and markers: what a work directory holds, and how it is known to be whole.

A stage writes one part per shard below its folder, as `<folder>/<shard>.<suffix>` files, through a
draft (draft.py). The marker `.markers/<folder>/<shard>.json` is written last, with the size and
the digest of each file. A part whose marker does not match (other inputs, other settings, a column
or a file that is missing, a file of another size) counts as missing. What is read from a part is
compared with its digest.
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
READERS = 32  # threads that ask a remote store at once
MAPPED_FROM = 1 << 22  # bytes: smaller local files are read as a whole
LARGEST_MARKER = 1 << 26
READ_WHOLE = 1 << 26  # bytes: of larger remote files, some row groups are read at a time
ABSENT = (FileNotFoundError, NotADirectoryError)
LEGACY = tuple(f"{folder}/" for folder in legacy.MARKED)


@dataclass(frozen=True)
class _Listing:
    """What lay below some folders: sizes by name, and the markers' bytes."""

    folders: tuple[str, ...]
    sizes: dict[str, int]
    markers: dict[str, bytes]

    def covers(self, name: str) -> bool:
        return name.startswith(self.folders)


class Store:
    """A work directory on a local disk or on any file system that fsspec knows.

    What cannot be asked or read for another reason than that it is not there raises OSError.
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
        """Threads and what this process alone knows stay in it."""
        return vars(self) | {"_renewal": None, "_known_whole": {}, "_last_remote": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renewal = Renewal()

    def reopened(self) -> "Store":
        """The same with connections of its own, for another process."""
        again = Store(self.location, self._markers, self.scratch_place)
        again._known_whole = dict(self._known_whole)
        return again

    def path(self, name: str) -> str:
        """Full path of a file of this work directory; `name` uses forward slashes."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(again(lambda: self.fs.exists(self.path(name))))

    def size(self, name: str) -> int:
        """Bytes of a file; -1 where there is none."""
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
        """Within the block, sizes and markers below `folders` are as they lay there at its start.

        On a remote file system that is one listing of each folder and markers read side by side,
        in place of several calls, one after the other, for each part. A local disk needs none.
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
        """The files of a part that is to be made; what is not committed within the block is
        removed."""
        return _draft(self, part)

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[RecordingStream]:
        """Open a file that appears under its name only when the block ends without an error.

        Raises UserError where it cannot be written, and OSError where that may pass.
        Without `sync` it may be lost if the machine itself stops soon after.
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
        """Within the block, an error of the storage that does not pass is a UserError."""
        try:
            yield
        except OSError as error:
            if not is_final(error):
                raise
            why = error.strerror or error
            raise UserError(f"cannot write {self.path(name)}: {why}") from error

    @contextlib.contextmanager
    def temporary_file(self, name: str, sync: bool = True) -> Iterator[tuple[str, RecordingStream]]:
        """A new local file for what will be called `name`, and where it is. It stays there until it
        is put in place or released; an error within the block removes it."""
        folder = os.path.dirname(self.path(name)) if self.is_local else self._scratch_base()
        path = f"{folder}/{temporary_name()}"
        try:
            # Where it is uploaded from, others may read the folder.
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
        """Give a temporary file its name. An object store shows an object when all of it is there;
        what broke off is not sent."""
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
        """A local folder for what does not fit into memory, removed when it is done with; what
        killed processes have left beside it is removed too."""
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
        """Remove a file, if it is there."""
        with contextlib.suppress(*ABSENT):
            if self.is_local:
                os.remove(self.path(name))
            else:
                again(lambda: self.fs.rm_file(self.path(name)))

    def sweep(self) -> None:
        """Remove what killed processes left half-written, and move markers of capmix 0.1 to where
        they are now; of a remote work directory, what waited here to be uploaded."""
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

    def write_bytes(self, name: str, data: bytes, sync: bool = True) -> FileRecord:
        """A whole file; returns its record."""
        with self.writing(name, sync) as stream:
            stream.write(data)
        return stream.record

    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError or NotADirectoryError where there is none."""
        if self._listing is not None and name.endswith(".json") and self._listing.covers(name):
            if name not in self._listing.markers:
                raise FileNotFoundError(name)
            return self._listing.markers[name]
        if self.is_local:  # a tenth of what fsspec takes, and a pool has many markers
            return again(lambda: self._read_local(name))
        data: bytes = again(lambda: self.fs.cat_file(self.path(name)))
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, as_lines(value))

    def read_json(self, name: str) -> Any:
        """The parsed file; None where it is missing or is not json."""
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
        """A table, or some of its columns.

        Raises UserError where one is missing, or the file is not what `record`, or the marker of
        `part` (default: the file's name without suffix), says; OSError where the storage fails.
        """
        # Threads that read a Python stream can abort or hang the interpreter when it exits
        # (apache/arrow issues 33975 and 50482).

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
            if may_pass:  # Arrow gives no number where the bytes are damaged
                raise
            raise UserError(_unreadable(self.path(name), str(error))) from error

    @contextlib.contextmanager
    def open_table(
        self, name: str, record: FileRecord | None = None, part: str | None = None
    ) -> Iterator[pq.ParquetFile]:
        """A parquet file whose row groups can be read one by one; see read_table.

        The digest is compared when a file is opened for the first time. Where there is none, and in
        remote files of more than READ_WHOLE bytes, the checksum of each page is, when it is read.
        """
        is_pinned = record is not None
        record = record or self.record(name, part)
        if not self.is_local and (size := self.size(name)) > READ_WHOLE:
            if record is not None and record.size != size:
                difference = f"it has {size:,} bytes, its marker says {record.size:,}"
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
        """What the marker of `part` (default: the file's name without suffix) says of a file; None
        where nothing is said of it.

        Raises UserError for a file of a part that is not finished.
        """
        part = part or name.rpartition(".")[0]
        marker = self.read_marker(part)
        if marker is not None:
            return marker.files.get(name)
        if not name.startswith(LEGACY):
            return None
        raise UserError(
            f"{self.path(part)}: no finished part. Run the command that makes it first."
        )

    def compares(self, record: FileRecord) -> bool:
        """Whether the digest of a file is compared before it is read."""
        return bool(record.digest) and (self.is_local or record.size <= READ_WHOLE)

    def _whole(
        self, name: str, record: FileRecord | None, part: str | None, is_pinned: bool = False
    ) -> pa.Buffer:
        """All bytes of a file. Raises UserError where they are not those of its record, and
        FileNotFoundError where there is none. A record that is not pinned may be one that another
        run has just replaced."""
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
        """Of a file whose digest was compared: it need not be again while it is the same file."""
        if not record.digest:
            return
        if self.is_local:
            self._known_whole[name] = (record.digest, *state)
        elif record.size > BUFFER:  # a subset, which is read again and again
            self._last_remote = name, record.digest, data

    def _bytes_of(self, name: str) -> tuple[pa.Buffer, tuple[int, int, int]]:
        """The bytes of a file, and what tells a local one from one that replaces it."""
        if not self.is_local:
            data = again(lambda: self.fs.cat_file(self.path(name)))
            return pa.py_buffer(data), (0, 0, 0)
        with self._reading(name) as stream:
            about = os.fstat(stream.fileno())
            state = about.st_ino, about.st_size, about.st_mtime_ns
            # A read reports errors, where a mapping kills; Windows replaces no mapped file.
            if about.st_size < MAPPED_FROM or sys.platform == "win32":
                return pa.py_buffer(stream.read()), state
            return pa.py_buffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), state

    def digest(self, name: str) -> FileRecord:
        """The record of a file as it is now, read in pieces. Raises FileNotFoundError."""

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

    def _read_local(self, name: str) -> bytes:
        with self._reading(name) as stream:
            data: bytes = stream.read()
        return data

    def read_part_bytes(self, name: str, part: str | None = None) -> bytes:
        """The whole file of a part. Raises UserError where it is not what its marker says."""
        try:
            data: bytes = self._whole(name, self.record(name, part), part).to_pybytes()
        except ABSENT as error:
            raise UserError(_unreadable(self.path(name), str(error))) from error
        return data

    def read_array(self, name: str, part: str | None = None) -> np.ndarray:
        """Raises UserError where it is missing, unreadable or not what its marker says."""
        try:
            data = self.read_part_bytes(name, part)
            array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(_unreadable(self.path(name), str(error))) from error
        return array

    def write_marker(self, part: str, marker: Marker) -> None:
        """Declare `part` finished; Draft.commit is what does so for parts that are made."""
        self.put_marker(self.prepare_marker(part, marker), part)

    def prepare_marker(self, part: str, marker: Marker) -> str:
        """Write a marker under a temporary name, which put_marker takes."""
        with self.temporary_file(self._marker(part)) as (path, stream):
            stream.write(marker_bytes(marker))
        return path

    def put_marker(self, path: str, part: str) -> None:
        """Declare `part` finished by a marker that was prepared."""
        self.put_in_place(path, self._marker(part))
        self._remove_old_marker(part)

    def remove_marker(self, part: str) -> None:
        """The part is not finished from now on."""
        self.remove(self._marker(part))
        self._remove_old_marker(part)

    def _remove_old_marker(self, part: str) -> None:
        """One of capmix 0.1, beside the part. Users have .json files of their own there."""
        if self._has_old_marker(part):
            self.remove(f"{part}.json")

    def _has_old_marker(self, part: str) -> bool:
        if not part.startswith(LEGACY) or not 0 <= self.size(f"{part}.json") <= LARGEST_MARKER:
            return False
        with contextlib.suppress(*ABSENT):
            return legacy.is_marker(self.read_bytes(f"{part}.json"))
        return False

    def locked(self, part: str) -> "contextlib.AbstractContextManager[None]":
        """Within the block no other process of a local disk commits a part of the same folder."""
        if not self.is_local:
            return contextlib.nullcontext()
        return folder_lock(self.path(self._marker(part)).rpartition("/")[0])

    def read_marker(self, part: str) -> Marker | None:
        """The marker of `part`, or None where there is none that can be read."""
        try:
            return parse_marker(self.read_marker_bytes(part), part)
        except ABSENT:
            return None

    def read_marker_bytes(self, part: str) -> bytes:
        """The marker of a part as it is written. Raises FileNotFoundError where there is none."""
        try:
            return self.read_bytes(self._marker(part))
        except ABSENT:
            if not part.startswith(LEGACY):
                raise
        with contextlib.suppress(*ABSENT):
            return self.read_bytes(f"{part}.json")
        return self.read_bytes(self._marker(part))  # another process may have moved it meanwhile

    def _marker(self, part: str) -> str:
        return f"{self._markers}/{part}.json"

    def fingerprint(self, part: str) -> str:
        """Digest of a part's marker, for parts made from it; "" while it is missing."""
        try:
            return marker_digest(self.read_marker_bytes(part))
        except ABSENT:
            return ""

    def fingerprint_and_marker(self, part: str) -> tuple[str, Marker | None]:
        """Both of one reading: "" and None while it is missing, and no marker where it is
        damaged."""
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
        """Whether the part is there as its marker says, made of these inputs with this config, and
        has these columns. Settings at their `defaults` count as absent."""
        marker = self.read_marker(part)
        return (
            marker is not None
            and marker.inputs == inputs
            and same_settings(marker.config, config, defaults or {})
            and marker.columns_missing(columns) == []
            and self.has_sizes(marker)
        )

    def has_sizes(self, marker: Marker) -> bool:
        """Whether every file of a part is there with as many bytes as its marker says."""
        return all(self.size(name) == one.size for name, one in marker.files.items())

    def damage(self, marker: Marker) -> dict[str, str]:
        """Every file of a part that is not what its marker says: how, by name. All are read.

        Raises OSError where the storage fails.
        """
        found = {}
        for name, one in marker.files.items():
            try:
                found[name] = one.difference_to(self.digest(name))
            except ABSENT:
                found[name] = "it is missing"
            except NotAFileError:
                found[name] = "it is no regular file"
        return {name: how for name, how in found.items() if how}

    def is_gone(self, part: str, marker: Marker) -> bool:
        """Whether somebody has deleted all files of a part and left its marker."""
        return all(self.size(name) < 0 for name in marker.files or [f"{part}.parquet"])

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right below `folder`, sorted; none where it is missing."""
        path = self.path(folder)
        try:
            found = again(lambda: self.fs.ls(path, detail=True))
        except FileNotFoundError:
            return []
        is_folder = (one["type"] == "directory" or self._leads_to_folder(one) for one in found)
        names = (one["name"].rpartition("/")[2] for one in found)
        return sorted(name for name, is_one in zip(names, is_folder, strict=True) if is_one)

    def _leads_to_folder(self, about: Mapping[str, Any]) -> bool:
        """Whether a link that a user put here leads to a folder, such as one on a larger disk."""
        return bool(about.get("islink")) and os.path.isdir(about["name"])

    def files(self, folder: str) -> list[str]:
        """Names of all files below `folder`, sorted."""
        found = files_below(self.fs, self.path(folder))
        return sorted(path[len(self.root) + 1 :] for path in found)

    def parts(self, folder: str) -> list[str]:
        """Names of the finished parts below `folder`, without suffix, sorted."""
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
    """A folder for its owner alone. Raises UserError where it cannot be made."""
    base = os.path.dirname(path)
    for attempt in range(RACES):
        try:
            os.makedirs(base, exist_ok=True)
            os.mkdir(path, 0o700)
            return
        except OSError as error:
            # Another run may just have removed the folder that is empty.
            is_race = isinstance(error, FileNotFoundError | FileExistsError)
            if not is_race or attempt == RACES - 1:
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _sweep_folder(folder: str) -> None:
    """Remove the temporary files and folders right below `folder` whose process has ended."""
    try:
        names = [name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    now = clock_of(folder) if names else 0.0
    for name in names:
        if is_abandoned(f"{folder}/{name}", now):
            remove_temporary(f"{folder}/{name}")


def as_lines(value: Any) -> bytes:
    """The JSON of a value as files hold it, for people too."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def _opened(path: str, mode: int) -> BinaryIO:
    """A new file; fsspec's wrapper costs more than small writes do."""

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
        "then the command that made it"
    )
