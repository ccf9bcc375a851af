"""Scores of a shard as a raw array in the order of the index: what recipes read, not tables.

`.arrays/scores/<scorer>/<source>/<shard>` has a header and then, of N samples with up to K
captions: float32 scores (K, N), NaN for none; where some samples are not ok, a bit for each that
is; where not exactly the texts have scores, a bit for each of (K, N) that has a text.

It is a copy: the header names the parts that it was made from by their fingerprints, and has a
digest of all that follows. Where these do not match it is made again, so that any of these files
may be deleted, and none that is damaged or out of date is used.
"""

import contextlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from capmix.errors import UserError
from capmix.storage.layout import ARRAYS, SAMPLES, texts_folder
from capmix.storage.record import FileRecord
from capmix.storage.rows import OK
from capmix.storage.store import Store

MAGIC = b"capmix\0\1"
# Magic, N, K, flags, fingerprints of index, texts and scores, digest of flags, sizes and content.
HEADER = struct.Struct("<8sIHH16s16s16s16s")
SOME_NOT_OK, TEXTS_APART = 1, 2
MAX_PLANES = 1024  # captions of a sample: 40 MB of scores for 10,000 samples


@dataclass(frozen=True)
class PinnedParts:
    """The parts that a reader keeps to: fingerprints by part, and records by file."""

    fingerprint: Callable[[str], str]
    record: Callable[[str], FileRecord | None]

    @classmethod
    def present(cls, store: Store) -> "PinnedParts":
        """Those that lie there now."""
        return cls(store.fingerprint, store.record)

    def read(self, store: Store, part: str, *columns: str) -> pa.Table:
        """Some columns of a part. Raises UserError where it is not the one that was pinned."""
        name = f"{part}.parquet"
        return store.read_table(name, columns, self.record(name))


@dataclass(frozen=True)
class ScoreArray:
    """Scores of all texts of a shard, in the order of the index.

    `scores` is float32 (K, N), NaN where there is none; `is_ok` bool (N,), None where all samples
    are ok; `texts` bool (K, N), None where the texts are those that have a score.
    """

    scores: np.ndarray
    is_ok: np.ndarray | None = None
    texts: np.ndarray | None = None

    @property
    def samples(self) -> int:
        return int(self.scores.shape[1])

    def of(self, k: int) -> np.ndarray:
        """float32 (N,): the scores of each sample's caption k."""
        if k < len(self.scores):
            found: np.ndarray = self.scores[k]
            return found
        return np.full(self.samples, np.nan, np.float32)

    def has_text(self, k: int) -> np.ndarray:
        """bool (N,): whether the sample has a caption k."""
        if k >= len(self.scores):
            return np.zeros(self.samples, bool)
        found: np.ndarray = ~np.isnan(self.scores[k]) if self.texts is None else self.texts[k]
        return found

    def best(self) -> np.ndarray:
        """int32 (N,): the caption that scores highest, of equals the first; the first one where
        none has a score, 0 where there is none."""
        if len(self.scores) < 2:
            return np.zeros(self.samples, np.int32)
        texts = ~np.isnan(self.scores) if self.texts is None else self.texts
        values = np.where(texts & ~np.isnan(self.scores), self.scores, -np.inf)
        best = values.argmax(axis=0)
        none = np.isneginf(values.max(axis=0))
        found: np.ndarray = np.where(none, texts.argmax(axis=0), best).astype(np.int32)
        return found

    def at(self, k: np.ndarray) -> np.ndarray:
        """float32 (N,): the scores of captions `k`, int32 (N,)."""
        last = len(self.scores) - 1
        found: np.ndarray = np.array(self.scores[np.minimum(k, last), np.arange(self.samples)])
        found[k > last] = np.nan
        return found

    def has_text_at(self, k: np.ndarray) -> np.ndarray:
        """bool (N,): whether the sample has that of captions `k`, int32 (N,)."""
        if self.texts is None:
            has: np.ndarray = ~np.isnan(self.at(k))
            return has
        last = len(self.scores) - 1
        found: np.ndarray = self.texts[np.minimum(k, last), np.arange(self.samples)]
        found &= k <= last  # a copy: numbers of places chose it
        return found


@dataclass(frozen=True)
class Places:
    """Rows of a part, int64: the number of each in the index, its k, and its number in the part.

    Where they were found by uid, a uid that the index has again is found once: `same` (N,) has, for
    each sample, the first one of its uid; None where every row has its own.
    """

    row: np.ndarray
    k: np.ndarray
    place: np.ndarray
    same: np.ndarray | None = None


def read_array(store: Store, folder: str, shard: str, pinned: PinnedParts) -> ScoreArray:
    """The scores of a shard in a folder of scores.

    They are written down for the next reader where the parts that they come from have digests.
    Raises UserError where these parts are missing or damaged.
    """
    parts = _parts(folder, shard)
    prints = [pinned.fingerprint(part) for part in parts]
    name = f"{ARRAYS}/{folder}/{shard}"
    with contextlib.suppress(OSError, ValueError):
        return _parsed(store.read_bytes(name), prints)
    array = _make(store, parts, pinned)
    # Of what an older capmix wrote, a fingerprint does not tell the content.
    if all(prints) and all((r := pinned.record(f"{p}.parquet")) and r.digest for p in parts):
        with contextlib.suppress(OSError, UserError):  # such as a work directory that others own
            store.write_bytes(name, _as_bytes(array, prints), sync=False)
    return array


def write_array(store: Store, folder: str, shard: str) -> None:
    """Write down the scores of a part that was just made, if the shard is indexed. On a remote
    store, where that takes a dozen requests, it is left to who reads them first."""
    if store.is_local and store.fingerprint(f"{SAMPLES}/{shard}"):
        with contextlib.suppress(UserError):  # the reader gets this error
            read_array(store, folder, shard, PinnedParts.present(store))


def _parts(folder: str, shard: str) -> list[str]:
    """Index, texts and scores."""
    texts = texts_folder(folder.rpartition("/")[2])
    return [f"{one}/{shard}" for one in (SAMPLES, texts, folder)]


def _make(store: Store, parts: list[str], pinned: PinnedParts) -> ScoreArray:
    read = partial(pinned.read, store)
    index, texts, scores = parts
    is_raw = texts == index
    samples = read(index, "uid", "status", *(["text"] if is_raw else []))
    uids = _one(samples["uid"])
    ok = pc.equal(samples["status"], OK).to_numpy()
    captions = samples if is_raw else None
    if not is_raw and pinned.fingerprint(texts):
        captions = read(texts, "uid", "k", "text")
    given = read(scores, "uid", "score", *([] if is_raw else ["k"]))
    return _array(uids, ok, captions, given, store.path(scores))


def _array(
    uids: pa.Array, ok: np.ndarray, captions: pa.Table | None, given: pa.Table, place: str
) -> ScoreArray:
    """See ScoreArray; `captions` have uid and text, `given` uid and score, both k where there are
    several. Without captions, each score stands for one."""
    values = pc.fill_null(given["score"], np.nan).to_numpy().astype(np.float32)
    scored = places(uids, given, ~np.isnan(values))
    written = scored
    if captions is not None:
        written = places(uids, captions, pc.is_valid(captions["text"]).to_numpy())
    numbers = np.concatenate([scored.k, written.k])
    if numbers.max(initial=0) >= MAX_PLANES or numbers.min(initial=0) < 0:
        raise UserError(
            f"{place}: a caption number outside 0 to {MAX_PLANES - 1}; recipes and subsets take "
            f"up to {MAX_PLANES:,} captions of a sample. Write fewer, and score them again"
        )
    scores = np.full((1 + int(numbers.max(initial=0)), len(uids)), np.nan, np.float32)
    scores[scored.k[::-1], scored.row[::-1]] = values[scored.place[::-1]]  # of equal ones the first
    texts = np.zeros(scores.shape, bool)
    texts[written.k, written.row] = True
    if scored.same is not None:
        scores = scores[:, scored.same]
    if written.same is not None:
        texts = texts[:, written.same]
    scores[:, ~ok], texts[:, ~ok] = np.nan, False
    apart = not np.array_equal(texts, ~np.isnan(scores))
    return ScoreArray(scores, None if ok.all() else ok, texts if apart else None)


def places(uids: pa.Array, part: pa.Table, counts: np.ndarray) -> Places:
    """Where the rows of `part` that count, bool (M,), belong among the `uids` of an index, those
    that it knows; uid and, where there are several captions of a sample, k tell."""
    of_part, same = _one(part["uid"]), None
    if of_part.equals(uids):
        rows = np.arange(len(uids))
    else:
        found = pc.index_in(of_part, value_set=uids)
        rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False)
        same = pc.index_in(uids, value_set=uids).to_numpy(zero_copy_only=False)
        same = None if np.array_equal(same, np.arange(len(uids))) else same
    here = counts & (rows >= 0)
    k = np.zeros(len(rows), np.int64)
    if "k" in part.column_names:
        numbers = _one(part["k"])
        here &= pc.is_valid(numbers).to_numpy(zero_copy_only=False)
        k = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False).astype(np.int64)
    place = np.flatnonzero(here)
    return Places(rows[place], k[place], place, same)


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_bytes(array: ScoreArray, prints: list[str]) -> bytes:
    planes, samples = array.scores.shape
    flags, pieces = 0, [np.ascontiguousarray(array.scores).tobytes()]
    if array.is_ok is not None:
        flags |= SOME_NOT_OK
        pieces.append(np.packbits(array.is_ok).tobytes())
    if array.texts is not None:
        flags |= TEXTS_APART
        pieces.append(np.packbits(array.texts).tobytes())
    content = b"".join(pieces)
    known = [bytes.fromhex(one) for one in prints]
    digest = _digest(samples, planes, flags, content)
    return HEADER.pack(MAGIC, samples, planes, flags, *known, digest) + content


def _parsed(data: bytes, prints: list[str]) -> ScoreArray:
    """Raises ValueError where the bytes are damaged or of other parts."""
    if len(data) < HEADER.size:
        raise ValueError("too short")
    magic, samples, planes, flags, *found, digest = HEADER.unpack_from(data)
    if magic != MAGIC or found != [bytes.fromhex(one) for one in prints]:
        raise ValueError("of other parts")
    content = memoryview(data)[HEADER.size :]
    if digest != _digest(samples, planes, flags, content):
        raise ValueError("damaged")
    count = planes * samples
    scores = np.frombuffer(content, np.float32, count).reshape(planes, samples)
    at, is_ok, texts = 4 * count, None, None
    if flags & SOME_NOT_OK:
        is_ok = _bits(content, at, samples)
        at += -(-samples // 8)
    if flags & TEXTS_APART:
        texts = _bits(content, at, count).reshape(planes, samples)
    return ScoreArray(scores, is_ok, texts)


def _bits(content: memoryview, at: int, count: int) -> np.ndarray:
    packed = np.frombuffer(content, np.uint8, -(-count // 8), at)
    return np.unpackbits(packed, count=count).view(bool)


def _digest(samples: int, planes: int, flags: int, content: bytes | memoryview) -> bytes:
    state = xxhash.xxh3_128(struct.pack("<IHH", samples, planes, flags))
    state.update(content)
    return state.digest()
