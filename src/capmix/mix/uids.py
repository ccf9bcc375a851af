"""uids in DataComp's format: sorted pairs of 64-bit numbers in .npy files."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError, reason
from capmix.mix.recipe import MAX_REPEATS
from capmix.storage.filesystem import READ_FLAGS
from capmix.storage.record import Sink

PAIR = np.dtype("u8,u8")
HEX_DIGITS = 32
PARTITIONS = 256
COUNTED = np.dtype([*((name, PAIR[name]) for name in ("f0", "f1")), ("times", "i4")])
KEPT = 1 << 24  # bytes held in memory before they are written to the files
PAIRS_AT_ONCE = 1 << 20  # 16 bytes each
TEXT_AT_ONCE = 1 << 24  # bytes of a text file that are read at a time
MAX_UIDS = 1 << 31  # in a list: 32 GB in memory
# What reading a broken .npy file raises: numpy parses its header with Python's own parser.
BROKEN_LIST = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    TokenError,
    MemoryError,
    RecursionError,
    OverflowError,
    TypeError,
    KeyError,
)


def pairs_of(uids: pa.Array) -> np.ndarray:
    """Convert N uids of 32 hex digits to pairs u8,u8 (N,): their upper and lower 64 bits.

    This is the format of DataComp's subset files. Raises UserError, with the uid, for any other
    form.
    """
    lengths = pc.binary_length(uids)
    if len(uids) and not pc.all(pc.equal(lengths, HEX_DIGITS)).as_py():
        other = uids.filter(pc.not_equal(pc.fill_null(lengths, 0), HEX_DIGITS))[0].as_py()
        raise _not_hex(other)
    offsets = np.frombuffer(uids.buffers()[1], np.int32)[uids.offset : uids.offset + len(uids) + 1]
    data = memoryview(uids.buffers()[2] or b"")[offsets[0] : offsets[-1]] if len(uids) else b""
    try:
        numbers = np.frombuffer(bytes.fromhex(bytes(data).decode("ascii")), ">u8")
    except ValueError as error:
        raise _not_hex(next(uid for uid in uids.to_pylist() if not _is_hex(uid))) from error
    pairs = np.empty(len(uids), PAIR)
    pairs["f0"], pairs["f1"] = numbers[0::2], numbers[1::2]
    return pairs


def _is_hex(uid: str) -> bool:
    try:
        return len(bytes.fromhex(uid)) * 2 == len(uid)
    except ValueError:
        return False


def _not_hex(uid: str | None) -> UserError:
    return UserError(f"uid {uid!r}: expected {HEX_DIGITS} hex digits, as in DataComp")


class PairSorter:
    """Sorts any number of records by their first two fields, a pair, in bounded memory.

    Records are partitioned into files by the first byte of their pair, and each file is sorted
    separately. Records are written once they fill `kept` bytes. Only one file is open at a time,
    because jobs may have a low limit of open files.
    """

    def __init__(self, scratch: str, dtype: np.dtype = PAIR, kept: int = KEPT):
        self.dtype = dtype
        self._folder = Path(scratch)
        self._kept = kept
        self._waiting: list[np.ndarray] = []
        self._bytes = 0

    def add(self, records: np.ndarray) -> None:
        """Add records. They are not copied, so do not change them afterwards."""
        self._waiting.append(records)
        self._bytes += records.nbytes
        if self._bytes >= self._kept:
            self._write()

    def sorted(self) -> Iterator[np.ndarray]:
        """Yield all records in order, in batches. Equal pairs stay in the order of insertion."""
        self._write()
        for part in range(PARTITIONS):
            file = self._file(part)
            records = np.empty(0, self.dtype)
            if file.exists():
                records = np.fromfile(file, self.dtype)
                file.unlink()
            yield records[np.lexsort((records["f1"], records["f0"]))]

    def close(self) -> None:
        """Discard all records."""
        self._waiting, self._bytes = [], 0
        for part in range(PARTITIONS):
            self._file(part).unlink(missing_ok=True)

    def _write(self) -> None:
        records = np.concatenate([np.empty(0, self.dtype), *self._waiting])
        self._waiting, self._bytes = [], 0
        parts = (records["f0"] >> np.uint64(56)).astype(np.uint8)
        records = records[np.argsort(parts, kind="stable")]
        ends = np.cumsum(np.bincount(parts, minlength=PARTITIONS))
        for part, end in enumerate(ends):
            start = ends[part - 1] if part else 0
            if end > start:
                with self._file(part).open("ab") as stream:
                    stream.write(records[start:end].tobytes())

    def _file(self, part: int) -> Path:
        return self._folder / f"{part:02x}"


def write_npy(stream: Sink, batches: Iterable[np.ndarray], count: int) -> None:
    """Write a .npy file of `count` pairs, as np.save does, without holding them in memory.

    `batches` are COUNTED: each pair is written `times` times, which must add up to `count`.
    """
    header = {"descr": np.lib.format.dtype_to_descr(PAIR), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, header | {"shape": (count,)})
    for batch in batches:
        for pairs in _repeated(batch):
            stream.write(pairs.tobytes())


def _repeated(batch: np.ndarray) -> Iterator[np.ndarray]:
    """Yield each pair of a COUNTED batch `times` times, as PAIR, PAIRS_AT_ONCE at a time."""
    pairs = np.empty(len(batch), PAIR)
    pairs["f0"], pairs["f1"] = batch["f0"], batch["f1"]
    ends = np.cumsum(batch["times"], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, PAIRS_AT_ONCE):
        places = np.arange(start, min(start + PAIRS_AT_ONCE, total))
        yield pairs[np.searchsorted(ends, places, side="right")]


class SortedPairs:
    """The distinct ones of some pairs, sorted.

    With `count`, `times`, uint32 (N,), is how often each occurs.
    """

    def __init__(self, pairs: np.ndarray, count: bool = False):
        order = np.lexsort((pairs["f1"], pairs["f0"]))
        upper, lower = pairs["f0"][order], pairs["f1"][order]
        del order
        is_new = np.ones(len(upper), bool)
        is_new[1:] = (upper[1:] != upper[:-1]) | (lower[1:] != lower[:-1])
        self._upper = upper = upper[is_new]
        self._lower = lower[is_new]
        if count:
            ends = np.append(np.flatnonzero(is_new), len(is_new))
            self.times = np.diff(ends).astype(np.uint32)

    def __len__(self) -> int:
        return len(self._upper)

    def __getitem__(self, places: slice) -> np.ndarray:
        """Return some of the pairs, PAIR."""
        upper, lower = self._upper[places], self._lower[places]
        return np.stack([upper, lower], axis=1).view(PAIR)[:, 0]

    def find(self, asked: np.ndarray) -> np.ndarray:
        """Return the place of each of M pairs, int64 (M,); -1 for none."""
        place = np.searchsorted(self._upper, asked["f0"])
        found = np.full(len(asked), -1, np.int64)
        left = np.arange(len(asked))
        while len(left):  # more than one iteration only for pairs with the same upper half
            left = left[place[left] < len(self)]
            left = left[self._upper[place[left]] == asked["f0"][left]]
            same = self._lower[place[left]] == asked["f1"][left]
            found[left[same]] = place[left[same]]
            left = left[~same]
            place[left] += 1
        return found


class UidList:
    """A list of uids from a .npy file of pairs (sorted or not) or a text file, one uid per line."""

    def __init__(self, path: str):
        pairs = _read_list(path)
        self.digest = digest_of(pairs)
        self._pairs = SortedPairs(pairs, count=True)
        times = self._pairs.times
        if len(times) and times.max() > MAX_REPEATS:
            most = int(times.argmax())
            ((upper, lower),) = self._pairs[most : most + 1].tolist()
            raise UserError(
                f"uid list {path} contains uid {upper:016x}{lower:016x} {times.max():,} times; "
                f"expected at most {MAX_REPEATS:,}"
            )

    def times(self, uids: pa.Array) -> np.ndarray:
        """Return how often each of N uids is in the list, int32 (N,)."""
        places = self._pairs.find(pairs_of(uids))
        found = np.zeros(len(places), np.int32)
        found[places >= 0] = self._pairs.times[places[places >= 0]]
        return found


def _read_list(path: str) -> np.ndarray:
    try:
        # Reading a FIFO would block, and a device has no end.
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | READ_FLAGS)
        ) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UserError(f"uid list {path}: not a regular file")
            if not path.endswith(".npy"):
                return _pairs_of_words(stream)
        pairs: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except UserError as error:
        raise (
            error if str(error).startswith("uid list") else UserError(f"uid list {path}: {error}")
        ) from error
    except BROKEN_LIST as error:
        line = (reason(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"uid list {path}: {line}") from error
    if pairs.dtype != PAIR or pairs.ndim != 1:
        raise UserError(f"uid list {path}: expected pairs u8,u8, found {pairs.dtype}")
    if len(pairs) > MAX_UIDS:
        raise UserError(f"uid list {path}: {len(pairs):,} uids; at most {MAX_UIDS:,} are supported")
    return pairs


def _pairs_of_words(stream: BinaryIO) -> np.ndarray:
    """Read the uids separated by whitespace. Raises UserError for an invalid uid and ValueError for
    more than MAX_UIDS."""
    found = [np.empty(0, PAIR)]
    rest = b""
    count = 0
    while data := stream.read(TEXT_AT_ONCE):
        words = (rest + data).split()
        rest = words.pop() if words and not data[-1:].isspace() else b""
        if len(rest) > HEX_DIGITS:
            raise _not_hex(rest[: HEX_DIGITS + 1].decode("utf-8", "replace"))
        found.append(_pairs_of(words))
        count += len(words)
        if count > MAX_UIDS:
            raise ValueError(f"more than {MAX_UIDS:,} uids")
    return np.concatenate([*found, _pairs_of([rest] if rest else [])])


def _pairs_of(words: list[bytes]) -> np.ndarray:
    return pairs_of(pa.array([word.decode() for word in words], pa.string()))


def digest_of(pairs: np.ndarray | SortedPairs) -> str:
    """Return a digest of the pairs, 32 hex digits, without a second copy of it in memory."""
    total = hashlib.sha256()
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        total.update(pairs[start : start + PAIRS_AT_ONCE].tobytes())
    return total.hexdigest()[:32]
