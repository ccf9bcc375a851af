"""Walk through a tar as a stream: names and sizes of regular files, and their bytes if wanted.

Reads what tar writers write (v7, ustar, GNU long names, PAX), plain or gzipped, a few times as fast
as tarfile, which is what reading a pool mostly consists of. Nothing is ever written to disk. Unlike
tarfile it takes only the block of zeros that every writer puts there for the end: a tar that
breaks off or has a broken header is told.
"""

import contextlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 512
CHUNK = 1 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_NAME = 4096
MAX_NAMES_BYTES = 32 << 20  # a gigabyte of long names packs into one megabyte
FAR = 1 << 40  # behind the end of any shard; seek() takes no number of 64 bits
GZIP = b"\x1f\x8b"
ZEROS = bytes(BLOCK)
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, PAX = b"L", b"x"


class TarError(Exception):
    """The bytes are no tar, or break off."""


class NamesTooLongError(TarError):
    """The names of a tar's members hold more than MAX_NAMES_BYTES together."""


class TarMembers:
    """The regular files of a tar, in order. Iterate, and call `read` for those that are wanted.

    `is_whole` is false while bytes of the member that was given last are still to come.
    """

    def __init__(self, stream: BinaryIO):
        self._source: _Plain | _Gzip = _Plain(stream, b"")
        first = self._source.read(BLOCK)
        kind = _Gzip if first.startswith(GZIP) else _Plain
        self._source = kind(stream, first)
        self._unread = 0
        self._names_bytes = 0
        self.is_whole = True

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of each member. Raises TarError, zlib.error or OSError."""
        extended: dict[str, str] = {}
        while True:
            self._skip_rest()
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                raise TarError("the file ends before the tar does")
            if block == ZEROS:
                return
            _check_sum(block)
            size, kind = _number(block[124:136]), block[156:157]
            self._unread = size
            if kind in (LONG_NAME, PAX):
                if size > MAX_HEADER_BYTES:
                    raise TarError(f"a header of {size} bytes")
                data = self.read()
                name = {"path": _text(data.rstrip(b"\0"))}
                extended |= _records(data) if kind == PAX else name
                continue
            if "size" in extended:
                self._unread = size = _decimal(extended["size"])
            name_of = extended.get("path") or _name(block)
            if len(name_of) > MAX_NAME:
                raise TarError(f"a name of {len(name_of)} characters")
            self._count(name_of)
            extended = {}
            if kind in REGULAR and not name_of.endswith("/"):
                self.is_whole = False
                yield name_of, size

    def read(self) -> bytes:
        """The bytes of the member that was given last, once. Raises TarError if it breaks off."""
        size, self._unread = self._unread, 0
        data = self._source.read(size)
        if len(data) < size:
            raise TarError("unexpected end of data")
        self.is_whole = True
        self._source.skip(-size % BLOCK)
        return data

    def _skip_rest(self) -> None:
        size, self._unread = self._unread, 0
        if not self._source.skip(size):
            raise TarError("unexpected end of data")
        self.is_whole = True
        self._source.skip(-size % BLOCK)

    def _count(self, name: str) -> None:
        """Raise NamesTooLongError where the names hold too much, at the size they have in memory:
        one character that is not ASCII can make each of a name's take four bytes."""
        self._names_bytes += len(name) if name.isascii() else 4 * len(name)
        if self._names_bytes > MAX_NAMES_BYTES:
            raise NamesTooLongError(f"names of members hold over {MAX_NAMES_BYTES >> 20} MiB")


class _Plain:
    """Bytes of a stream; what is not wanted is skipped over where the stream can seek."""

    def __init__(self, stream: BinaryIO, first: bytes):
        self._stream, self._first = stream, first
        self._can_seek = stream.seekable()

    def read(self, size: int) -> bytes:
        if self._first:
            data, self._first = self._first[:size], self._first[size:]
            return data + self.read(size - len(data)) if len(data) < size else data
        data = self._stream.read(size)
        return data if len(data) == size else self._read_on(data, size)

    def _read_on(self, data: bytes, size: int) -> bytes:
        """A stream may give less than it is asked for; only nothing at all is the end."""
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        return data

    def skip(self, size: int) -> bool:
        """Whether there were so many bytes."""
        while size and self._first:
            size -= len(self.read(min(size, len(self._first))))
        if size > CHUNK and self._can_seek:
            # Nothing tells of a seek past the end of a short file but a read.
            self._stream.seek(min(size, FAR) - 1, 1)
            size = 1
        while size > 0 and (data := self._stream.read(min(size, CHUNK))):
            size -= len(data)
        return size == 0


class _Gzip:
    """Bytes of a gzipped stream; several gzip members are one."""

    def __init__(self, stream: BinaryIO, first: bytes):
        self._stream, self._packed = stream, first
        self._inflate = zlib.decompressobj(wbits=31)
        self._ready = bytearray()
        self._fault: zlib.error | None = None

    def read(self, size: int) -> bytes:
        while len(self._ready) < size and self._fill():
            pass
        data = bytes(self._ready[:size])
        del self._ready[:size]
        return data

    def skip(self, size: int) -> bool:
        """Whether there were so many bytes."""
        while size > 0 and (data := self.read(min(size, CHUNK))):
            size -= len(data)
        return size == 0

    def _fill(self) -> bool:
        if self._fault is not None:
            raise self._fault
        if self._inflate.eof:
            self._packed = self._inflate.unused_data or self._packed
            self._inflate = zlib.decompressobj(wbits=31)
        packed, self._packed = self._packed or self._stream.read(CHUNK // 8), b""
        before = self._inflate.copy()
        try:
            # Bounded, or a few bytes could unpack to more than the memory holds.
            data = self._inflate.decompress(packed, CHUNK)
        except zlib.error as error:
            data, self._fault = _before_fault(before, packed), error
        self._ready += data
        self._packed = self._inflate.unconsumed_tail
        return bool(packed or data)


def _before_fault(inflate: "zlib._Decompress", packed: bytes) -> bytes:
    """What faulty bytes unpack to before the fault; zlib gives nothing of a piece with one."""
    data = bytearray()
    with contextlib.suppress(zlib.error):
        for byte in packed:
            data += inflate.decompress(bytes([byte]))
    return bytes(data)


def _check_sum(block: bytes) -> None:
    """The header's sum, with its own field counted as blanks; some old writers summed signed."""
    try:
        told = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError as error:
        raise TarError("bad header") from error
    found = sum(block) - sum(block[148:156]) + 8 * 32
    signed = found - 256 * sum(byte > 127 for byte in block) if told != found else found
    if told not in (found, signed):
        raise TarError("bad checksum of a header")


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


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return _text(name)


def _text(name: bytes) -> str:
    """A name that any file can hold: bytes that are no UTF-8 are written out."""
    return name.decode("utf-8", "backslashreplace")


def _records(data: bytes) -> dict[str, str]:
    """PAX records: `length key=value`, length in bytes with itself and the line's end."""
    found: dict[str, str] = {}
    if b"path=" not in data and b"size=" not in data:  # times, most often
        return found
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
