"""Scores of a shard as a raw array in index order, which recipes read instead of tables.

`.arrays/scores/<scorer>/<source>/<shard>` has a header, followed by the data of N samples with up
to K captions:

- float32 scores (K, N), NaN where there is no score
- if some samples are not ok: one bit per sample, set if it is ok
- if the captions with a text are not exactly those with a score: one bit per caption (K, N), set if
  it has a text

The file is a cache. Its header has the fingerprints of the parts that it was computed from and a
digest of the data. If one of them does not match, the array is recomputed. Therefore any of these
files may be deleted, and damaged or outdated files are never used.
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
MAX_PLANES = 1024  # captions per sample: 40 MB of scores for 10,000 samples


@dataclass(frozen=True)
class PinnedParts:
    """The versions of parts that a reader uses: fingerprints by part, records by file."""

    fingerprint: Callable[[str], str]
    record: Callable[[str], FileRecord | None]

    @classmethod
    def present(cls, store: Store) -> "PinnedParts":
        """Pin the parts that exist now."""
        return cls(store.fingerprint, store.record)

    def read(self, store: Store, part: str, *columns: str) -> pa.Table:
        """Read columns of a part. Raises UserError if it is not the pinned version."""
        name = f"{part}.parquet"
        return store.read_table(name, columns, self.record(name))


@dataclass(frozen=True)
class ScoreArray:
    """Scores of all texts of a shard, in the order of the index.

    `scores` is float32 (K, N), NaN where there is no score. `is_ok` is bool (N,), or None if all
    samples are ok. `texts` is bool (K, N), or None if exactly the captions with a score have a
    text.
    """

    scores: np.ndarray
    is_ok: np.ndarray | None = None
    texts: np.ndarray | None = None

    @property
    def samples(self) -> int:
        return int(self.scores.shape[1])

    def of(self, k: int) -> np.ndarray:
        """Return the score of caption k of each sample, float32 (N,)."""
        if k < len(self.scores):
            found: np.ndarray = self.scores[k]
            return found
        return np.full(self.samples, np.nan, np.float32)

    def has_text(self, k: int) -> np.ndarray:
        """Return whether each sample has a caption k, bool (N,)."""
        if k >= len(self.scores):
            return np.zeros(self.samples, bool)
        found: np.ndarray = ~np.isnan(self.scores[k]) if self.texts is None else self.texts[k]
        return found

    def best(self) -> np.ndarray:
        """Return the number of the highest-scoring caption of each sample, int32 (N,).

        The first one wins ties. Without scores it is the first caption, without captions 0.
        """
        if len(self.scores) < 2:
            return np.zeros(self.samples, np.int32)
        texts = ~np.isnan(self.scores) if self.texts is None else self.texts
        values = np.where(texts & ~np.isnan(self.scores), self.scores, -np.inf)
        best = values.argmax(axis=0)
        none = np.isneginf(values.max(axis=0))
        found: np.ndarray = np.where(none, texts.argmax(axis=0), best).astype(np.int32)
        return found

    def at(self, k: np.ndarray) -> np.ndarray:
        """Return the scores, float32 (N,), of captions `k`, int32 (N,): one per sample."""
        last = len(self.scores) - 1
        found: np.ndarray = np.array(self.scores[np.minimum(k, last), np.arange(self.samples)])
        found[k > last] = np.nan
        return found

    def has_text_at(self, k: np.ndarray) -> np.ndarray:
        """Return whether each sample has its caption of `k`, int32 (N,), as bool (N,)."""
        if self.texts is None:
            has: np.ndarray = ~np.isnan(self.at(k))
            return has
        last = len(self.scores) - 1
        found: np.ndarray = self.texts[np.minimum(k, last), np.arange(self.samples)]
        found &= k <= last  # in place: integer indexing has made a copy
        return found


@dataclass(frozen=True)
class Places:
    """Positions of the rows of a part, int64: `row` in the index, `k`, and `place` in the part.

    Rows are matched by uid to the first sample of the index with that uid. `same` (N,) maps each
    sample to the first one with its uid; it is None if no uid is repeated or no match was needed.
    """

    row: np.ndarray
    k: np.ndarray
    place: np.ndarray
    same: np.ndarray | None = None


def read_array(store: Store, folder: str, shard: str, pinned: PinnedParts) -> ScoreArray:
    """Read the scores of a shard from a folder of scores.

    Caches them for the next reader if the parts that they come from have digests. Raises UserError
    if these parts are missing or damaged.
    """
    parts = _parts(folder, shard)
    prints = [pinned.fingerprint(part) for part in parts]
    name = f"{ARRAYS}/{folder}/{shard}"
    with contextlib.suppress(OSError, ValueError):
        return _parsed(store.read_bytes(name), prints)
    array = _make(store, parts, pinned)
    # Parts written by older versions have no digests: their fingerprint does not cover the content.
    if all(prints) and all((r := pinned.record(f"{p}.parquet")) and r.digest for p in parts):
        with contextlib.suppress(OSError, UserError):  # for example a read-only work directory
            store.write_bytes(name, _as_bytes(array, prints), sync=False)
    return array


def write_array(store: Store, folder: str, shard: str) -> None:
    """Cache the scores of a part that was just written, if the shard is indexed.

    Does nothing on a remote store, where it takes a dozen requests: the first reader caches them.
    """
    if store.is_local and store.fingerprint(f"{SAMPLES}/{shard}"):
        with contextlib.suppress(UserError):  # raised again when the scores are read
            read_array(store, folder, shard, PinnedParts.present(store))


def _parts(folder: str, shard: str) -> list[str]:
    """Return the names of the index, texts and scores parts."""
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
    """Build a ScoreArray.

    `captions` has the columns uid and text, `given` uid and score; both have k if samples can have
    several captions. Without `captions`, exactly the captions with a score have a text.
    """
    values = pc.fill_null(given["score"], np.nan).to_numpy().astype(np.float32)
    scored = places(uids, given, ~np.isnan(values))
    written = scored
    if captions is not None:
        written = places(uids, captions, pc.is_valid(captions["text"]).to_numpy())
    numbers = np.concatenate([scored.k, written.k])
    if numbers.max(initial=0) >= MAX_PLANES or numbers.min(initial=0) < 0:
        raise UserError(
            f"{place}: a caption number is outside 0 to {MAX_PLANES - 1}; recipes and subsets "
            f"support up to {MAX_PLANES:,} captions per sample. Write fewer and rescore them"
        )
    scores = np.full((1 + int(numbers.max(initial=0)), len(uids)), np.nan, np.float32)
    scores[scored.k[::-1], scored.row[::-1]] = values[
        scored.place[::-1]
    ]  # the first of duplicates wins
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
    """Locate rows of `part` in an index with these `uids`.

    `counts`, bool (M,), selects the rows. Rows with unknown uids or a null k are left out. Without
    a column k, all k are 0.
    """
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
    """Parse a cached array. Raises ValueError if it is damaged or was computed from other parts."""
    if len(data) < HEADER.size:
        raise ValueError("too short")
    magic, samples, planes, flags, *found, digest = HEADER.unpack_from(data)
    if magic != MAGIC or found != [bytes.fromhex(one) for one in prints]:
        raise ValueError("computed from other parts")
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
