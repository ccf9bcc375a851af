"""Parts and markers: what a work directory holds, and how it is known to be whole.

A stage writes one part per shard below its folder, as `<folder>/<shard>.<suffix>` files, each to
a temporary name that is then renamed. The marker `<folder>/<shard>.json` is written last. A part
whose marker does not match (other inputs, other settings) counts as missing.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.errors import UserError

BUFFER = 1 << 20
REPEATING = ("status", "reason", "detail", "finish", "shard", "source")
TEMPORARY = re.compile(r"\.(\d+)\.tmp$")


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
    they leave it: the two must agree.
    """

    inputs: dict[str, str]
    config: dict[str, Any]
    rows_in: int
    counts: Counts
    extra: dict[str, Any] = field(default_factory=dict)


class Store:
    """A work directory on a local disk or on any file system that fsspec knows."""

    def __init__(self, location: str):
        self.location = location
        self.fs, root = fsspec.core.url_to_fs(location)
        self.root = root.rstrip("/")
        self.is_local = "file" in self.fs.protocol

    def path(self, name: str) -> str:
        """Full path of a file of this work directory; `name` uses forward slashes."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    @contextlib.contextmanager
    def writing(self, name: str, sync: bool = True) -> Iterator[BinaryIO]:
        """Open a file that appears under its name only when the block ends without an error.

        Without `sync` it may be lost if the machine itself stops soon after.
        """
        target = self.path(name)
        folder, _, base = target.rpartition("/")
        temporary = f"{folder}/.{base}.{_owner(os.getpid())}"
        try:
            self.fs.makedirs(folder, exist_ok=True)
            with self._create(temporary) as stream:
                yield stream
                if self.is_local and sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            if self.is_local:
                os.replace(temporary, target)
            else:
                self.fs.mv(temporary, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.fs.rm_file(temporary)
            if isinstance(error, OSError):
                raise UserError(f"cannot write {target}: {error.strerror or error}") from error
            raise

    def _create(self, path: str) -> BinaryIO:
        if self.is_local:  # fsspec's wrapper costs more than small writes do
            return open(path, "wb", buffering=BUFFER)
        made: BinaryIO = self.fs.open(path, "wb")
        return made

    def sweep(self) -> None:
        """Remove what killed processes of this machine left half-written (local disks only)."""
        if not self.is_local:
            return
        for path in self.fs.find(self.root):
            found = TEMPORARY.search(path)
            if found and path.endswith(_owner(int(found[1]))) and not _is_running(int(found[1])):
                with contextlib.suppress(OSError):
                    self.fs.rm_file(path)

    def write_bytes(self, name: str, data: bytes, sync: bool = True) -> None:
        with self.writing(name, sync) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes:
        """The whole file. Raises OSError where there is none."""
        if self.is_local:  # a tenth of what fsspec takes, and a pool has many markers
            with open(self.path(name), "rb") as stream:
                return stream.read()
        data: bytes = self.fs.cat_file(self.path(name))
        return data

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """The parsed file; None where it is missing or is not json."""
        try:
            return json.loads(self.read_bytes(name))
        except (OSError, ValueError):
            return None

    def write_table(self, name: str, table: pa.Table) -> None:
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **parquet_options(table.schema))
        self.write_bytes(name, buffer.getvalue())

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or some of its columns. Raises UserError where one is missing or unreadable."""
        # Threads that read a Python stream can abort or hang the interpreter when it exits
        # (apache/arrow issues 33975 and 50482).
        try:
            with self.open_table(name) as file:
                have = file.schema_arrow.names
                absent = [column for column in columns or () if column not in have]
                if absent:
                    raise UserError(f"{self.path(name)}: no column {absent[0]!r}, only {have}")
                return file.read(columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {self.path(name)}: {error}") from error

    @contextlib.contextmanager
    def open_table(self, name: str) -> Iterator[pq.ParquetFile]:
        """A parquet file whose row groups can be read one by one."""
        path = self.path(name)
        if self.is_local:
            with pq.ParquetFile(path, memory_map=True) as file:
                yield file
        else:
            with self.fs.open(path, "rb") as stream, pq.ParquetFile(stream) as file:
                yield file

    def write_array(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write_bytes(name, buffer.getvalue())

    def read_array(self, name: str) -> np.ndarray:
        array: np.ndarray = np.load(
            io.BytesIO(self.fs.cat_file(self.path(name))), allow_pickle=False
        )
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
        self.write_json(f"{part}.json", vars(marker) | {"counts": counts})

    def read_marker(self, part: str) -> Marker | None:
        """The marker of `part`, or None where there is none that can be read."""
        value = self.read_json(f"{part}.json")
        try:
            counts = value["counts"]
            kept = Counts(counts["ok"], Counter(counts["dropped"]), Counter(counts["failed"]))
            return Marker(
                value["inputs"], value["config"], value["rows_in"], kept, value.get("extra", {})
            )
        except (TypeError, KeyError):
            return None

    def fingerprint(self, part: str) -> str:
        """Digest of a part's marker, for parts made from it; "" while it is missing."""
        try:
            return hashlib.sha256(self.read_bytes(f"{part}.json")).hexdigest()[:32]
        except OSError:
            return ""

    def is_done(self, part: str, inputs: dict[str, str], config: dict[str, Any]) -> bool:
        marker = self.read_marker(part)
        return marker is not None and marker.inputs == inputs and marker.config == config

    def folders(self, folder: str) -> list[str]:
        """Names of the folders right below `folder`, sorted; none where it is missing."""
        path = self.path(folder)
        if not self.fs.exists(path):
            return []
        found = self.fs.ls(path, detail=True)
        return sorted(one["name"].rpartition("/")[2] for one in found if one["type"] == "directory")

    def parts(self, folder: str) -> list[str]:
        """Names of the finished parts below `folder`, without suffix, sorted."""
        found = self.fs.find(self.path(folder))
        names = (path[len(self.root) + 1 :] for path in found if path.endswith(".json"))
        return sorted(name.removesuffix(".json") for name in names)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables are written: a dictionary only for columns that repeat a few words.

    For uids and captions it costs a third of the time to write and to read, and saves nothing.
    """
    repeating = [name for name in schema.names if name in REPEATING]
    return {"compression": "zstd", "compression_level": 1, "use_dictionary": repeating}


def _owner(process: int) -> str:
    return f"{socket.gethostname()}.{process}.tmp"


def _is_running(process: int) -> bool:
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
) -> tuple[Marker, bool]:
    """Make a part that is not per shard unless it is done.

    Returns its marker, and whether it was made now.
    """
    if store.is_done(name, inputs, config):
        marker = store.read_marker(name)
        assert marker is not None
        return marker, False
    marker = make()
    store.write_marker(name, marker)
    return marker, True
