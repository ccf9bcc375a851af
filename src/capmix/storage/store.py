"""Parts and markers: what a work directory holds, and how it is known to be whole.

A stage writes one part per shard below its folder, as `<folder>/<shard>.<suffix>` files, each to
a temporary name that is then renamed. The marker `.markers/<folder>/<shard>.json` is written last.
A part whose marker does not match (other inputs, other settings, a column or a file that is
missing, a file of another size) counts as missing.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError
from capmix.storage import legacy
from capmix.storage.compare import same_settings
from capmix.storage.filesystem import again, files_below, is_final, open_file_system
from capmix.storage.layout import ABOUT, EXPORT_MARKERS, MARKERS, RUNNING

BUFFER = 1 << 20
REPEATING = ("status", "reason", "detail", "finish", "shard", "source")
TEMPORARY = re.compile(r"\.(\d+)\.[0-9a-f]{8}\.tmp$")
READ_AT_ONCE = 32
ABSENT = (FileNotFoundError, NotADirectoryError)
LARGEST_MARKER = 1 << 26
LEGACY = tuple(f"{folder}/" for folder in legacy.MARKED)
FORMAT = 1  # of markers; those of capmix 0.1 have none


@dataclass
class Counts:
    """Rows of a part by what became of them; dropped and failed by reason."""

    ok: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.ok + self.dropped.total() + self.failed.total()

    def add(self, other: "Counts") -> None:
        self.ok += other.ok
        self.dropped.update(other.dropped)
        self.failed.update(other.failed)


@dataclass(frozen=True)
class Marker:
    """What a finished part was made from, and its counts.

    `inputs` maps each input's name to its fingerprint; `config` holds every setting that the
    part's content depends on. `rows_in` is counted where rows enter the stage and `counts` where
    they leave it: the two must agree. `files` are the part's files with their sizes in bytes,
    `columns` those of its table. `provenance` (versions, device, batch size) decides nothing.
    `upgraded` is the fingerprint that the part had before columns were added to it, and still has
    for what was made from it.
    """

    inputs: dict[str, str]
    config: dict[str, Any]
    rows_in: int
    counts: Counts
    extra: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    upgraded: str = ""

    def columns_missing(self, wanted: Sequence[str]) -> list[str]:
        """Those of `wanted` that the part does not have; none where it does not say."""
        return [name for name in wanted if self.columns and name not in self.columns]


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

    def __init__(self, location: str, markers: str = MARKERS):
        self.location = location
        self._markers = markers
        self.fs, root = open_file_system(location, "work directory")
        self.root = root.rstrip("/")
        self.is_local = "file" in self.fs.protocol
        self._listing: _Listing | None = None

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
        with ThreadPoolExecutor(READ_AT_ONCE) as threads:
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

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[BinaryIO]:
        """Open a file that appears under its name only when the block ends without an error.

        Raises UserError where it cannot be written, and OSError where that may pass.
        Without `sync` it may be lost if the machine itself stops soon after.
        """
        target = self.path(name)
        opened = self._written_local(target, sync) if self.is_local else self._uploaded(target)
        try:
            with opened as stream:
                yield stream
        except OSError as error:
            if not is_final(error):
                raise
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _written_local(self, target: str, sync: bool) -> Iterator[BinaryIO]:
        folder = target.rpartition("/")[0]
        os.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{_owner(os.getpid())}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with _opened(temporary) as stream:
                yield stream
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise

    @contextlib.contextmanager
    def _uploaded(self, target: str) -> Iterator[BinaryIO]:
        """An object store shows an object when all of it is there; what broke off is not sent."""
        with tempfile.NamedTemporaryFile() as stream:
            yield stream  # type: ignore[misc]
            stream.flush()
            again(lambda: self.fs.put_file(stream.name, target))

    def sweep(self) -> None:
        """Remove what killed processes of this machine left half-written, and move markers of
        capmix 0.1 to where they are now (local disks only)."""
        if not self.is_local:
            return
        is_ours, is_used = self.size(ABOUT) >= 0, self.size(RUNNING) >= 0
        for path in self.fs.find(self.root):
            name = path[len(self.root) + 1 :]
            if is_ours and not is_used and name.endswith(".json") and name.startswith(LEGACY):
                self._adopt(name)
            found = TEMPORARY.search(path)
            if not found or is_running(int(found[1])):
                continue
            if f".{_owner(int(found[1]))}." in path:
                with contextlib.suppress(OSError):
                    self.fs.rm_file(path)

    def _adopt(self, name: str) -> None:
        """Where both are there, the newer one describes the part. What cannot be moved, as on a
        disk that is read-only, is read where it is."""
        here, target = self.path(name), self.path(f"{self._markers}/{name}")
        if f"/{EXPORT_MARKERS}/" in name or not _is_marker(here):
            return
        with contextlib.suppress(OSError):
            os.makedirs(target.rpartition("/")[0], exist_ok=True)
            if self.size(f"{self._markers}/{name}") >= 0 and _time(target) > _time(here):
                os.remove(here)
            else:
                os.replace(here, target)

    def write_bytes(self, name: str, data: bytes, sync: bool = True) -> int:
        """Returns how many bytes there were, as all writers of whole files do."""
        with self.writing(name, sync) as stream:
            stream.write(data)
        return len(data)

    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError or NotADirectoryError where there is none."""
        if self._listing is not None and name.endswith(".json") and self._listing.covers(name):
            if name not in self._listing.markers:
                raise FileNotFoundError(name)
            return self._listing.markers[name]
        if self.is_local:  # a tenth of what fsspec takes, and a pool has many markers
            return again(lambda: Path(self.path(name)).read_bytes())
        data: bytes = again(lambda: self.fs.cat_file(self.path(name)))
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """The parsed file; None where it is missing or is not json."""
        try:
            return json.loads(self.read_bytes(name))
        except (*ABSENT, ValueError):
            return None

    def write_table(self, name: str, table: pa.Table) -> int:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **parquet_options(table.schema))
        return self.write_bytes(name, buffer.getvalue())

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or some of its columns.

        Raises UserError where one is missing or damaged, and OSError where the storage fails.
        """
        # Threads that read a Python stream can abort or hang the interpreter when it exits
        # (apache/arrow issues 33975 and 50482).

        def read() -> pa.Table:
            with self.open_table(name) as file:
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
            raise UserError(_unreadable(self.path(name), error)) from error

    @contextlib.contextmanager
    def open_table(self, name: str) -> Iterator[pq.ParquetFile]:
        """A parquet file whose row groups can be read one by one."""
        path = self.path(name)
        if self.is_local:
            with pq.ParquetFile(path, memory_map=True) as file:
                yield file
            return
        file = again(lambda: pq.ParquetFile(self.fs.open(path, "rb")))
        try:
            yield file
        finally:
            file.close(force=True)

    def write_array(self, name: str, array: np.ndarray) -> int:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self.write_bytes(name, buffer.getvalue())

    def read_array(self, name: str) -> np.ndarray:
        """Raises UserError where it is missing or unreadable."""
        try:
            array: np.ndarray = np.load(io.BytesIO(self.read_bytes(name)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(_unreadable(self.path(name), error)) from error
        return array

    def write_marker(self, part: str, marker: Marker) -> None:
        """Declare `part` finished. Raises ValueError if its counts do not add up."""
        if marker.counts.total != marker.rows_in:
            raise ValueError(f"{part}: {marker.rows_in} rows in, {marker.counts.total} accounted")
        counts = {
            "ok": marker.counts.ok,
            "dropped": dict(marker.counts.dropped),
            "failed": dict(marker.counts.failed),
        }
        value = vars(marker) | {"counts": counts}
        if not marker.upgraded:
            del value["upgraded"]
        self.write_json(self._marker(part), value)
        if self.is_local and part.startswith(LEGACY):  # one of 0.1, which is no longer read
            with contextlib.suppress(OSError):
                os.remove(self.path(f"{part}.json"))

    def read_marker(self, part: str) -> Marker | None:
        """The marker of `part`, or None where there is none that can be read."""
        try:
            value = json.loads(self.read_marker_bytes(part))
            counts = value["counts"]
            kept = Counts(counts["ok"], Counter(counts["dropped"]), Counter(counts["failed"]))
            about = value.get("extra", {}), value.get("files", {})
            made = value["inputs"], value["config"], value["rows_in"], kept
            number = value.get("format", 0)
            columns = tuple(value["columns"]) if number else legacy.columns_of(part)
            added = value.get("provenance", {}), number, value.get("upgraded", "")
            return Marker(*made, *about, columns, *added)
        except (*ABSENT, ValueError, TypeError, KeyError):
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
            and all(self.size(name) == size for name, size in marker.files.items())
        )

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
        return sorted(one["name"].rpartition("/")[2] for one in found if one["type"] == "directory")

    def files(self, folder: str) -> list[str]:
        """Names of all files below `folder`, sorted."""
        found = files_below(self.fs, self.path(folder))
        return sorted(path[len(self.root) + 1 :] for path in found)

    def parts(self, folder: str) -> list[str]:
        """Names of the finished parts below `folder`, without suffix, sorted."""
        top = f"{self._markers}/"
        marked = [name.removeprefix(top) for name in self.files(f"{top}{folder}".rstrip("/"))]
        older = [name for name in self.files(folder) if name.startswith(LEGACY)]
        return sorted({name[: -len(".json")] for name in marked + older if name.endswith(".json")})


def marker_digest(data: bytes) -> str:
    """32 hex digits of a marker's content, without its provenance: what was made the same way on
    another machine is the same."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # a damaged one: its bytes
        value = json.loads(data) if b'"provenance"' in data else {}
        if upgraded := value.get("upgraded"):
            return str(upgraded)
        if value:
            value.pop("provenance", None)
            value.pop("upgraded", None)
            data = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:32]


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables are written: a dictionary only for columns that repeat a few words.

    For uids and captions it costs a third of the time to write and to read, and saves nothing.
    """
    repeating = [name for name in schema.names if name in REPEATING]
    return {"compression": "zstd", "compression_level": 1, "use_dictionary": repeating}


def _opened(path: str) -> BinaryIO:
    """A new file; fsspec's wrapper costs more than small writes do."""
    try:
        return open(path, "wb", buffering=BUFFER)
    except FileNotFoundError:  # another run has just removed the empty folder
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "wb", buffering=BUFFER)


def _is_marker(path: str) -> bool:
    """Whether a file is a marker: users keep .json files of their own beside parts."""
    try:
        if os.stat(path).st_size > LARGEST_MARKER:
            return False
        value = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and {"inputs", "config", "rows_in", "counts"} <= value.keys()


def _time(path: str) -> int:
    return os.stat(path).st_mtime_ns


def _owner(process: int) -> str:
    return f"{socket.gethostname()}.{process}"


def _unreadable(path: str, error: Exception) -> str:
    return (
        f"cannot read {path}: {error}. If the file is damaged, delete it: the command that made it "
        "makes it again"
    )


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def once(
    store: Store,
    name: str,
    inputs: dict[str, str],
    config: dict[str, Any],
    make: Callable[[], Marker],
    defaults: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
) -> tuple[Marker, bool]:
    """Make a part that is not per shard unless it is done and its `files` are there.

    Returns its marker, and whether it was made now.
    """
    is_whole = all(store.size(one) >= 0 for one in files)
    if is_whole and store.is_done(name, inputs, config, defaults):
        marker = store.read_marker(name)
        assert marker is not None
        return marker, False
    marker = make()
    sizes = {one: store.size(one) for one in files}
    marker = replace(marker, files=marker.files | sizes)
    store.write_marker(name, marker)
    return marker, True
