"""Iterate over the members of a tar stream: names, sizes and, on request, bytes of regular files.

Reads v7, ustar, GNU long names and PAX, plain or gzipped. It is several times as fast as tarfile,
where most of the time of reading a pool would be spent. Nothing is ever written to disk. Unlike
tarfile, it accepts only a block of zeros as the end of the tar, and so raises TarError for a
truncated tar or a corrupt header.

Headers are parsed in place in a window of WINDOW bytes. Files are not memory-mapped: if a mapped
file is truncated, the process is killed (SIGBUS) where a read returns an error, and mapping would
save at most a tenth of the time.
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
WINDOW = 1 << 18  # bytes per read; small enough for one core's cache
MAX_HEADER_BYTES = 1 << 16
MAX_NAME = 4096
MAX_NAMES_BYTES = 32 << 20  # a gigabyte of long names compresses to one megabyte
FAR = 1 << 40  # beyond the end of any shard; seek() rejects offsets of 2**63 and more
GZIP = b"\x1f\x8b"
ZEROS = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, PAX = b"L", b"x"
FIELDS = struct.Struct("124x 12s 12x 8s 1s")  # size, checksum, kind
USTAR = b"ustar\0"
CACHE_SIZE = 1 << 12  # entries; one tar has few distinct checksums and small sizes
HALF = BLOCK // 2  # bytes; the sum of so few is below adler32's modulus
LOWER = 0xFFFF


class TarError(Exception):
    """The bytes are not a tar, or the tar is truncated."""


class NamesTooLongError(TarError):
    """The names of a tar's members exceed MAX_NAMES_BYTES in total."""


class TarMembers:
    """The regular files of a tar, in order. Iterate, and call `read` to get a member's bytes.

    `is_whole` is false while bytes of the last yielded member are still unread.
    """

    def __init__(self, stream: BinaryIO):
        self._window = _Window(stream)
        self._unread = 0
        self._names_bytes = 0
        self.is_whole = True

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Yield each member's name and size in bytes. Raises TarError, zlib.error or OSError."""
        window = self._window
        extended: dict[str, str] = {}
        while True:
            if self._unread:
                self._skip_rest()
            self.is_whole = True
            data, at = window.data, window.at
            if len(data) - at < BLOCK:
                if not window.holds(BLOCK):
                    raise TarError("unexpected end of file")
                data, at = window.data, window.at
            window.at = at + BLOCK
            if not data[at] and data.startswith(ZEROS, at):
                return
            digits, checksum, kind = FIELDS.unpack_from(data, at)
            middle = at + HALF
            # For so few bytes, adler32's lower half is their sum plus 1; sum() is ten times slower.
            total = (adler32(data[at:middle]) & LOWER) + (
                adler32(data[middle : at + BLOCK]) & LOWER
            )
            if total - 2 != _expected_sum(checksum):
                _check_signed_sum(data[at : at + BLOCK], _expected_sum(checksum))
            self._unread = size = _number(digits)
            if kind in (PAX, LONG_NAME):
                if size > MAX_HEADER_BYTES:
                    raise TarError(f"header of {size} bytes; the limit is {MAX_HEADER_BYTES}")
                about = self.read()
                if kind == LONG_NAME:
                    extended["path"] = _text(about.rstrip(b"\0"))
                elif b"path=" in about or b"size=" in about:  # most have only times
                    extended |= _records(about)
                continue
            if "size" in extended:
                self._unread = size = _decimal(extended["size"])
            name = extended.get("path") or _name(data, at)
            extended.clear()
            if len(name) > MAX_NAME:
                raise TarError(f"name of {len(name)} characters; the limit is {MAX_NAME}")
            # The size in memory: one non-ASCII character can make every character take four bytes.
            self._names_bytes += len(name) if name.isascii() else 4 * len(name)
            if self._names_bytes > MAX_NAMES_BYTES:
                text = f"member names exceed {MAX_NAMES_BYTES >> 20} MiB"
                raise NamesTooLongError(text)
            if kind in REGULAR and not name.endswith("/"):
                self.is_whole = False
                yield name, size

    def read(self) -> bytes:
        """Return the bytes of the last yielded member. Can be called only once per member.

        Raises TarError if the member is truncated.
        """
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
    """A source of bytes. `read` may return fewer bytes than requested, and b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


class _Window:
    """A buffer on a stream: the bytes in `data` from position `at` are not consumed yet.

    Unwanted bytes are skipped by seeking, if the stream is seekable.
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
        """Fill the buffer to `size` unconsumed bytes. Returns false if the stream ends before.

        `data` and `at` may change.
        """
        while len(self.data) - self.at < size:
            more = self._source.read(WINDOW)
            if not more:
                return False
            self.data = self.data[self.at :] + more if self.at < len(self.data) else more
            self.at = 0
        return True

    def take(self, size: int) -> bytes:
        """Consume `size` bytes and return them; fewer at the end of the stream."""
        end = self.at + size
        data = self.data[self.at : end]
        if end > len(self.data):
            return self._take_more(data, size)
        self.at = end
        return data

    def _take_more(self, first: bytes, size: int) -> bytes:
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
        """Consume `size` bytes. Returns false if the stream ends before."""
        end = self.at + size
        if end <= len(self.data):
            self.at = end
            return True
        size, self.data, self.at = end - len(self.data), b"", 0
        if size > CHUNK and self._seek is not None:
            # Seeking past the end succeeds; only reading the last byte detects a short file.
            self._seek(min(size, FAR) - 1, 1)
            size = 1
        while size and self.holds(1):
            self.at = min(size, len(self.data))
            size -= self.at
        return size == 0


class _Inflated:
    """Decompressed bytes of a gzipped stream. Several gzip members are concatenated."""

    def __init__(self, stream: BinaryIO, first: bytes):
        self._stream, self._packed = stream, first
        self._inflate = zlib.decompressobj(wbits=31)
        self._fault: zlib.error | None = None

    def read(self, size: int, /) -> bytes:
        """Return at most CHUNK bytes, as a few bytes could expand to more than fits in memory."""
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
    """Decompress corrupt data up to the fault; zlib returns nothing for a chunk with a fault."""
    data = bytearray()
    with contextlib.suppress(zlib.error):
        for byte in packed:
            data += inflate.decompress(bytes([byte]))
    return bytes(data)


def _check_signed_sum(header: bytes, checksum: int) -> None:
    """Compare with the sum of signed bytes, which some old writers used. Raises TarError."""
    if checksum != sum(header) - 256 * sum(byte > 127 for byte in header):
        raise TarError("bad checksum in a header")


@lru_cache(CACHE_SIZE)
def _expected_sum(field: bytes) -> int:
    """Return the sum of a header's bytes according to its checksum field.

    The checksum is computed with its own field filled with blanks.
    """
    try:
        return int(field.strip(b" \0") or b"-1", 8) - 8 * 32 + sum(field)
    except ValueError as error:
        raise TarError("bad header") from error


@lru_cache(CACHE_SIZE)
def _number(field: bytes) -> int:
    """Parse octal digits, or a binary number if the first bit is set (GNU, for large files)."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 8)) - 1)
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():  # int() would accept a sign
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
    """Return the name in the header at `at`."""
    name = data[at : at + 100].split(b"\0", 1)[0]
    if data[at + 345] and data.startswith(USTAR, at + 257):
        name = data[at + 345 : at + 500].split(b"\0", 1)[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 become backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


def _records(data: bytes) -> dict[str, str]:
    """Parse PAX records: `length key=value`, where the length in bytes counts the whole line."""
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
