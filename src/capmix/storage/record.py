"""Size and digest of a file when it was written, which are compared when it is read.

The digest is xxh3 (https://xxhash.com, 128 bits). It detects damage by disks, networks and other
programs, but does not protect against someone who changes a file and its marker on purpose.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import xxhash


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size of a file in bytes, and its digest: 32 hex digits, or "" from older capmix versions."""

    size: int
    digest: str = ""

    def difference(self, data: pa.Buffer | bytes) -> str:
        """Describe how the bytes of a file differ from this record; "" if they match."""
        size = memoryview(data).nbytes
        is_compared = self.digest and size == self.size
        return self.difference_to(FileRecord(size, digest_of(data) if is_compared else ""))

    def difference_to(self, found: "FileRecord") -> str:
        """Describe how a file with the record `found` differs from this one; "" if they match."""
        if found.size != self.size:
            return f"size is {found.size:,} bytes, but its marker records {self.size:,}"
        if self.digest and found.digest != self.digest:
            return "checksum mismatch"
        return ""


def digest_of(data: Any) -> str:
    """Return the digest of bytes or of any object with a buffer, as 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)


def records_of(files: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Parse the files of a marker, by name; markers of capmix 0.1 have only their sizes.

    Raises KeyError, TypeError or ValueError for any other form.
    """
    found = {}
    for name, about in files.items():
        if isinstance(about, dict):
            found[str(name)] = FileRecord(int(about["bytes"]), str(about["xxh3"]))
        else:
            found[str(name)] = FileRecord(int(about))
    return found


def as_json(files: Mapping[str, FileRecord]) -> dict[str, Any]:
    """Return the JSON form of a marker's files, the inverse of records_of."""
    return {
        name: {"bytes": one.size, "xxh3": one.digest} if one.digest else one.size
        for name, one in files.items()
    }


class Sink(Protocol):
    """Object that bytes are written to."""

    def write(self, data: bytes, /) -> Any: ...


class RecordingStream(io.BufferedIOBase):
    """Write-only stream that writes through to a file and computes its size and digest."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._size = 0
        self._state = xxhash.xxh3_128()

    @property
    def record(self) -> FileRecord:
        """Record of all bytes written so far."""
        return FileRecord(self._size, self._state.hexdigest())

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._state.update(data)
        size = memoryview(data).nbytes
        self._size += size
        self._stream.write(data)
        return size

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        if not self._stream.closed:  # the finalizer flushes again after the file was closed
            self._stream.flush()
