"""Walk through a tar as a stream: names and sizes of regular files, and their bytes if wanted.

Reads what tar writers write (v7, ustar, GNU long names, PAX), plain or gzipped, several times as
fast as tarfile, which is what reading a pool mostly consists of. Nothing is ever written to disk.
Unlike tarfile it takes only the block of zeros that every writer puts there for the end: a tar that
breaks off or has a broken header is told.

Headers are read where they lie in a window of WINDOW bytes. A file is not mapped into memory: one
that is shortened while it is mapped ends the process (SIGBUS), where a read tells of it, and a
mapping saves no more than a tenth of the time.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, Protocol
from zlib import adler32

BLOCK = 512
CHUNK = 1 << 20
WINDOW = 1 << 18  # bytes: what is read at once, no more than the cache of one core holds
MAX_HEADER_BYTES = 1 << 16
MAX_NAME = 4096
MAX_NAMES_BYTES = 32 << 20  # a gigabyte of long names packs into one megabyte
FAR = 1 << 40  # behind the end of any shard; seek() takes no number of 64 bits
GZIP = b"\x1f\x8b"
ZEROS = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, PAX = b"L", b"x"
FIELDS = struct.Struct("124x 12s 12x 8s 1s")  # size, check sum, kind
USTAR = b"ustar\0"
REMEMBERED = 1 << 12  # numbers: the sums and small sizes of one tar are few
HALF = BLOCK // 2  # bytes, whose sum is below adler32's modulus
LOWER = 0xFFFF


class TarError(Exception):
    """The bytes are no tar, or break off."""


class NamesTooLongError(TarError):
    """The names of a tar's members hold more than MAX_NAMES_BYTES together."""


class TarMembers:
    """The regular files of a tar, in order. Iterate, and call `read` for those that are wanted.

    `is_whole` is false while bytes of the member that was given last are still to come.
    """

    def __init__(self, stream: BinaryIO):
        self._window = _Window(stream)
        self._unread = 0
        self._names_bytes = 0
        self.is_whole = True

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of each member. Raises TarError, zlib.error or OSError."""
        window = self._window
        extended: dict[str, str] = {}
        while True:
            if self._unread:
                self._skip_rest()
            self.is_whole = True
            data, at = window.data, window.at
            if len(data) - at < BLOCK:
                if not window.holds(BLOCK):
                    raise TarError("the file ends before the tar does")
                data, at = window.data, window.at
            window.at = at + BLOCK
            if not data[at] and data.startswith(ZEROS, at):
                return
            digits, told, kind = FIELDS.unpack_from(data, at)
            middle = at + HALF
            # Of so few bytes adler32's lower half is their sum and 1: a tenth of the time of sum().
            total = (adler32(data[at:middle]) & LOWER) + (
                adler32(data[middle : at + BLOCK]) & LOWER
            )
            if total - 2 != _told_sum(told):
                _check_signed_sum(data[at : at + BLOCK], _told_sum(told))
            self._unread = size = _number(digits)
            if kind in (PAX, LONG_NAME):
                if size > MAX_HEADER_BYTES:
                    raise TarError(f"a header of {size} bytes")
                about = self.read()
                if kind == LONG_NAME:
                    extended["path"] = _text(about.rstrip(b"\0"))
                elif b"path=" in about or b"size=" in about:  # most often there are but times
                    extended |= _records(about)
                continue
            if "size" in extended:
                self._unread = size = _decimal(extended["size"])
            name = extended.get("path") or _name(data, at)
            extended.clear()
            if len(name) > MAX_NAME:
                raise TarError(f"a name of {len(name)} characters")
            # As large as it is in memory: one character that is not ASCII can make each of a
            # name's take four bytes.
            self._names_bytes += len(name) if name.isascii() else 4 * len(name)
            if self._names_bytes > MAX_NAMES_BYTES:
                text = f"names of members hold over {MAX_NAMES_BYTES >> 20} MiB"
                raise NamesTooLongError(text)
            if kind in REGULAR and not name.endswith("/"):
                self.is_whole = False
                yield name, size

    def read(self) -> bytes:
        """The bytes of the member that was given last, once. Raises TarError if it breaks off."""
        size, self._unread = self._unread, 0
        window = self._window
        end = window.at + size
        after = end + -size % BLOCK
        if after <= len(window.data):
            data, window.at = window.data[window.at : end], after
        else:
            data = window.take(size)
            if len(data) < size:
                raise TarError("unexpected end of data")
            window.skip(-size % BLOCK)
        self.is_whole = True
        return data

    def _skip_rest(self) -> None:
        size, self._unread = self._unread, 0
        if not self._window.skip(size):
            raise TarError("unexpected end of data")
        self._window.skip(-size % BLOCK)


class _Bytes(Protocol):
    """What gives bytes: fewer than it is asked for, if it likes, and none at its end."""

    def read(self, size: int, /) -> bytes: ...


class _Window:
    """Bytes of a stream, in order: `data` from `at` on are read and not used yet.

    What is not wanted is skipped over where the stream can seek.
    """

    def __init__(self, stream: BinaryIO):
        self.data, self.at = stream.read(WINDOW), 0
        while len(self.data) < len(GZIP) and (more := stream.read(WINDOW)):
            self.data += more
        self._source: _Bytes = stream
        self._seek = stream.seek if stream.seekable() else None
        if self.data.startswith(GZIP):
            self._source, self._seek, self.data = _Inflated(stream, self.data), None, b""

    def holds(self, size: int) -> bool:
        """Whether there are so many bytes from `at` on, once more is read; `at` may change."""
        while len(self.data) - self.at < size:
            more = self._source.read(WINDOW)
            if not more:
                return False
            self.data = self.data[self.at :] + more if self.at < len(self.data) else more
            self.at = 0
        return True

    def take(self, size: int) -> bytes:
        """So many bytes; fewer where the stream ends."""
        end = self.at + size
        data = self.data[self.at : end]
        if end > len(self.data):
            return self._take_on(data, size)
        self.at = end
        return data

    def _take_on(self, first: bytes, size: int) -> bytes:
        pieces, left = [first], size - len(first)
        while left:
            self.data, self.at = b"", 0
            more = self._source.read(max(left, WINDOW))
            if not more:
                break
            if len(more) > left:
                self.data, self.at = more, left
                more = more[:left]
            pieces.append(more)
            left -= len(more)
        return b"".join(pieces)

    def skip(self, size: int) -> bool:
        """Whether there were so many bytes."""
        end = self.at + size
        if end <= len(self.data):
            self.at = end
            return True
        size, self.data, self.at = end - len(self.data), b"", 0
        if size > CHUNK and self._seek is not None:
            # Nothing tells of a seek past the end of a short file but a read.
            self._seek(min(size, FAR) - 1, 1)
            size = 1
        while size and self.holds(1):
            self.at = min(size, len(self.data))
            size -= self.at
        return size == 0


class _Inflated:
    """Bytes of a gzipped stream; several gzip members are one."""

    def __init__(self, stream: BinaryIO, first: bytes):
        self._stream, self._packed = stream, first
        self._inflate = zlib.decompressobj(wbits=31)
        self._fault: zlib.error | None = None

    def read(self, size: int, /) -> bytes:
        """At most CHUNK bytes, or a few bytes could unpack to more than the memory holds."""
        while self._fault is None:
            if self._inflate.eof:
                self._packed = self._inflate.unused_data or self._packed
                self._inflate = zlib.decompressobj(wbits=31)
            packed, self._packed = self._packed or self._stream.read(CHUNK // 8), b""
            before = self._inflate.copy()
            try:
                data = self._inflate.decompress(packed, min(size, CHUNK))
            except zlib.error as error:
                data, self._fault = _before_fault(before, packed), error
            self._packed = self._inflate.unconsumed_tail
            if data or not packed:
                return data
        raise self._fault


def _before_fault(inflate: "zlib._Decompress", packed: bytes) -> bytes:
    """What faulty bytes unpack to before the fault; zlib gives nothing of a piece with one."""
    data = bytearray()
    with contextlib.suppress(zlib.error):
        for byte in packed:
            data += inflate.decompress(bytes([byte]))
    return bytes(data)


def _check_signed_sum(header: bytes, told: int) -> None:
    """Some old writers summed signed. Raise TarError where that is not the sum either."""
    if told != sum(header) - 256 * sum(byte > 127 for byte in header):
        raise TarError("bad checksum of a header")


@lru_cache(REMEMBERED)
def _told_sum(field: bytes) -> int:
    """What the bytes of a header add up to by its check sum, which counts its own field as
    blanks."""
    try:
        return int(field.strip(b" \0") or b"-1", 8) - 8 * 32 + sum(field)
    except ValueError as error:
        raise TarError("bad header") from error


@lru_cache(REMEMBERED)
def _number(field: bytes) -> int:
    """Octal digits, or a binary number where the first bit is set (GNU, for large files)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 8)) - 1)
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():  # int() would take a sign
        raise TarError("bad size in a header")
    try:
        return int(digits, 8)
    except ValueError as error:
        raise TarError("bad size in a header") from error


def _decimal(text: str) -> int:
    if not text.isdecimal():
        raise TarError(f"bad size {text!r:.40} in an extended header")
    return int(text)


def _name(data: bytes, at: int) -> str:
    """Of the header at `at`."""
    name = data[at : at + 100].split(b"\0", 1)[0]
    if data[at + 345] and data.startswith(USTAR, at + 257):
        name = data[at + 345 : at + 500].split(b"\0", 1)[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    """A name that any file can hold: bytes that are no UTF-8 are written out."""
    return name.decode("utf-8", "backslashreplace")


def _records(data: bytes) -> dict[str, str]:
    """PAX records: `length key=value`, length in bytes with itself and the line's end."""
    found: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start] != 0:
        blank = data.find(b" ", start, start + 12)
        length = data[start:blank] if blank > 0 else b""
        size = int(length) if length.isdigit() else 0
        key, sign, value = data[blank + 1 : start + size - 1].partition(b"=")
        if not size or not sign:
            raise TarError("bad extended header")
        found[key.decode("utf-8", "replace")] = _text(value)
        start += size
    return {key: value for key, value in found.items() if key in ("path", "size")}
