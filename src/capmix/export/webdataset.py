"""Write samples as a WebDataset tar: image bytes untouched, `.txt` the chosen caption.

Keys are `<uid>-<number of the copy>`, as DataComp's resharder names them. Members have no time and
no owner: the same subset gives the same bytes.
"""

import json
import tarfile
from collections.abc import Iterable, Mapping
from struct import Struct
from zlib import adler32

from capmix.export.samples import Chosen
from capmix.storage.record import Sink

BLOCK = 512
END = bytes(2 * BLOCK)
ZEROS = [bytes(count) for count in range(BLOCK)]  # what fills a member's last block
BATCH = 1 << 17  # bytes joined at once: what fits a core's cache is cheap to copy
LOWER = 0xFFFF
TO_JSON = json.JSONEncoder(check_circular=False)  # what was parsed has no circles


def write_tar(stream: Sink, samples: Iterable[Chosen], untouched: bool = False) -> int:
    """Write every copy of every sample; returns how many there were.

    With `untouched` the members of the pool's tars are written as they are, as DataComp's resharder
    does; the chosen text is not.
    """
    batch = _Batch(stream)
    written = 0
    for chosen in samples:
        uid = chosen.sample.uid
        for copy in chosen.copies:
            files = chosen.sample.members if untouched else _files(chosen, copy)
            batch.add(f"{uid}-{copy}.", files)
            written += 1
    batch.flush()
    stream.write(END)
    return written


class _Batch:
    """Members that wait to be written together.

    Their bytes have to be in memory to be compared with the index and summed for the record of the
    file, so that copying them from file to file within the system (copy_file_range) costs more.
    """

    def __init__(self, stream: Sink):
        self._stream = stream
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, stem: str, files: Mapping[str, bytes]) -> None:
        """The files of one sample, by what follows `stem` in their names."""
        for suffix, data in files.items():
            size = len(data)
            rest = -size % BLOCK
            self._pieces += (_header(stem + suffix, size), data, ZEROS[rest])
            self._size += BLOCK + size + rest
        if self._size >= BATCH:
            self.flush()

    def flush(self) -> None:
        self._stream.write(b"".join(self._pieces))
        self._pieces, self._size = [], 0


def _files(chosen: Chosen, copy: int) -> dict[str, bytes]:
    return {
        chosen.sample.suffix: chosen.sample.image,
        "json": _json(chosen, copy),
        "txt": chosen.row["text"].encode("utf-8"),
    }


def _json(chosen: Chosen, copy: int) -> bytes:
    """The sample's own json with the captions and the choice put into it.

    Copies after the first have a uid of their own, so that no reader takes them for a mistake.
    """
    uid = f"{chosen.sample.uid}-{copy}" if copy else chosen.sample.uid
    return TO_JSON.encode(chosen.sample.metadata | {"uid": uid} | chosen.fields).encode()


def _template() -> tuple[bytes, int]:
    """A header without name, size and checksum, and the sum of its bytes."""
    info = tarfile.TarInfo()
    info.mode = 0o644
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = bytes(12)
    block[148:156] = b" " * 8
    return bytes(block), sum(block)


TEMPLATE, TEMPLATE_SUM = _template()
FIELDS = Struct("100s 24s 12s 12s 8s 356s")  # name, mode and owner, size, time, check sum, the rest
OWNER, TIME, REST = TEMPLATE[100:124], TEMPLATE[136:148], TEMPLATE[156:]


def _header(name: str, size: int) -> bytes:
    """A ustar header, as tarfile writes it, in a twentieth of the time."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)
    digits = b"%011o\0" % size
    # Of so few bytes adler32's lower half is their sum and 1.
    total = TEMPLATE_SUM + (adler32(encoded + digits) & LOWER) - 1
    return FIELDS.pack(encoded, OWNER, digits, TIME, b"%06o\0 " % total, REST)
