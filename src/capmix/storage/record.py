"""What a file was when it was written: its size and a digest, compared when it is read.

xxh3 (https://xxhash.com, 128 bits) finds what disks, networks and other programs do to a file. It
does not protect from somebody who changes a file and its marker on purpose.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import xxhash


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Bytes of a file, and 32 hex digits of its content; "" where an older capmix wrote it."""

    size: int
    digest: str = ""

    def difference(self, data: pa.Buffer | bytes) -> str:
        """In words, how a file's bytes are others than were written; "" where they are the same."""
        size = memoryview(data).nbytes
        is_compared = self.digest and size == self.size
        return self.difference_to(FileRecord(size, digest_of(data) if is_compared else ""))

    def difference_to(self, found: "FileRecord") -> str:
        """The same of a file whose record is `found`."""
        if found.size != self.size:
            return f"it has {found.size:,} bytes, its marker says {self.size:,}"
        if self.digest and found.digest != self.digest:
            return "its bytes are not those that were written"
        return ""


def digest_of(data: Any) -> str:
    """32 hex digits of bytes, or of anything with a buffer of them."""
    return xxhash.xxh3_128_hexdigest(data)


def records_of(files: Mapping[str, Any]) -> dict[str, FileRecord]:
    """The files of a marker by name; capmix 0.1 wrote down their sizes alone. Raises KeyError,
    TypeError or ValueError for another form."""
    found = {}
    for name, about in files.items():
        if isinstance(about, dict):
            found[str(name)] = FileRecord(int(about["bytes"]), str(about["xxh3"]))
        else:
            found[str(name)] = FileRecord(int(about))
    return found


def as_json(files: Mapping[str, FileRecord]) -> dict[str, Any]:
    """The form of markers, which records_of reads."""
    return {
        name: {"bytes": one.size, "xxh3": one.digest} if one.digest else one.size
        for name, one in files.items()
    }


class Sink(Protocol):
    """Where bytes are written to."""

    def write(self, data: bytes, /) -> Any: ...


class RecordingStream(io.BufferedIOBase):
    """Writes through to a file, and knows what it has written. Writing is all that it does."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._size = 0
        self._state = xxhash.xxh3_128()

    @property
    def record(self) -> FileRecord:
        """Of all bytes so far."""
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
        if not self._stream.closed:  # the finaliser flushes once more, after the file was closed
            self._stream.flush()
