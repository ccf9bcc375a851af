"""Partial parts: results of single samples, kept on disk while the part of their shard is computed.

A run that ends inside a shard, however it ends, leaves the results that it has. The next run uses
them and computes only the others. They are removed when the part is committed.

Results are appended to `.partial/<folder>/<shard>.<key>.<run>`, where shard and key are digests. A
line has the results of some samples: a checksum, a space, and a JSON list. The checksum covers the
key, which stands for everything that the results depend on. So a line that is torn, damaged, or
from other settings or another version of the shard counts as missing. Each run writes its own
files: runs that compute the same shard at once never write to the same file.

On a local disk, a line is written at once, and synced to disk every SYNC_EVERY seconds. On other
storage, where files cannot be appended to, the lines of CHUNK_EVERY seconds are one object.
"""

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import orjson

from capmix.pool import Shard
from capmix.storage.filesystem import again_from, storage_errors
from capmix.storage.json_text import parse_json
from capmix.storage.layout import PARTIAL
from capmix.storage.record import digest_of
from capmix.storage.store import Store

log = logging.getLogger(__name__)

FORMAT = 1
SYNC_EVERY, CHUNK_EVERY = 5.0, 30.0  # seconds
LARGEST_SHARE = 0.01  # share of the time for syncs and uploads; slow storage gets fewer of them
LONGEST_LINE = 1 << 26  # bytes


class PartialPart:
    """The results of single samples of one shard, until its part is committed.

    `about` is everything that a result depends on, as values for JSON. Nothing is read or written
    before the first call. Thread-safe.

    If the storage fails temporarily, a warning is logged once, and further results are not kept. If
    it fails permanently, for example because the disk is full, `add` and `close` raise UserError:
    the part could not be written either, and the results so far are kept for the next run.
    """

    def __init__(self, store: Store, folder: str, shard: str, about: Any):
        self._store, self._part = store, f"{folder}/{shard}"
        about = [FORMAT, self._part, about]
        self._salt = json.dumps(about, default=str, sort_keys=True).encode()
        self._shard = f"{PARTIAL}/{folder}/{shard_digest(shard)}"
        self._usable = f"{self._shard}.{_digest(self._salt)}."
        self._name = f"{self._usable}{uuid.uuid4().hex[:8]}"
        self._lock = threading.Lock()
        self._file: _Appended | _Chunks | None = None
        self._is_used = self._is_closed = False
        # On the Hub, each object would be a commit, and its bytes would stay in the history.
        self._is_off = "hf" in store.fs.protocol

    def entries(self) -> Iterator[list[Any]]:
        """Yield the entries that earlier runs have added, and other active runs so far.

        An entry is a list with any content: the caller checks its form. It may occur repeatedly.
        """
        for name in self._names():
            self._is_used = True
            if name.startswith(self._usable):
                yield from self._read(name)

    def _names(self) -> list[str]:
        """Return the files of this shard, including those with other settings."""
        names = self._store.files(os.path.dirname(self._shard))
        return [name for name in names if name.startswith(f"{self._shard}.")]

    def _read(self, name: str) -> Iterator[list[Any]]:
        try:
            for line in again_from(lambda: self._store.lines(name, LONGEST_LINE)):
                check, _, text = line.rstrip(b"\n").partition(b" ")
                if check == self._check(text):
                    with suppress(ValueError):
                        found = parse_json(text)
                        some = found if isinstance(found, list) else []
                        yield from (one for one in some if isinstance(one, list))
        except FileNotFoundError:  # another run has just committed the part
            return
        except storage_errors() as error:
            log.warning("%s: results of an earlier run cannot be read: %s", self._part, error)

    def _check(self, text: bytes) -> bytes:
        return _digest(self._salt + text).encode()

    def add(self, entries: Sequence[Sequence[Any]]) -> None:
        """Keep the entries: lists or tuples of strings, numbers, None, and lists of these.

        They may be results of any samples, at any time and in any order. After `close` or `remove`,
        for example in a thread whose request outlasts the run, they are ignored.
        """
        if not entries or self._is_off:
            return
        text = orjson.dumps(entries, default=list)
        with self._kept():
            if self._is_closed:
                return
            if self._file is None:
                new = _Appended if self._store.is_local else _Chunks
                self._file = new(self._store, self._name)
            self._file.write(b"%s %s\n" % (self._check(text), text))
            self._is_used = self._is_used or self._file.is_there

    def close(self) -> None:
        """Write what is still in memory. The entries stay for the next run."""
        with self._kept():
            file, self._file, self._is_closed = self._file, None, True
            if file is not None:
                file.close()
                self._is_used = True

    def remove(self) -> None:
        """Remove the entries of all runs: the part is committed."""
        with self._lock:
            if self._file is not None:
                self._file.abandon()
            self._file, self._is_closed = None, True
        if self._is_used:
            with suppress(*storage_errors()):
                _remove(self._store, self._names())

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            with self._lock, self._store.reporting_errors(self._name):
                yield
        except storage_errors() as error:
            self._is_off, self._is_used, self._file = True, True, None
            log.warning(
                "%s: cannot keep results before all of the shard is done: %s. If this run is "
                "interrupted, they are computed again",
                self._part, error,
            )  # fmt: skip


def remove_finished(
    store: Store, done: Mapping[str, Iterable[Shard]], is_alone: Callable[[], bool]
) -> None:
    """Remove the results of shards whose parts are finished, given by folder.

    A run that is killed right after it has committed a part leaves them behind. Nothing is removed
    unless this run `is_alone`: a part that is finished for a few samples may be unfinished for
    another run.
    """
    left = store.files(PARTIAL)
    if left and is_alone():
        known = {(folder, shard_digest(shard.name)) for folder in done for shard in done[folder]}
        _remove(store, [name for name in left if place_of(name) in known])


def place_of(name: str) -> tuple[str, str]:
    """Return the folder of the parts, and the digest of the shard, that a file is about."""
    folder, _, file = name.removeprefix(f"{PARTIAL}/").rpartition("/")
    return folder, file.partition(".")[0]


def shard_digest(shard: str) -> str:
    """Return the digest of a shard's name, with which the names of its files begin."""
    return _digest(shard.encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    return digest_of(data)[:16]


def _remove(store: Store, names: Iterable[str]) -> None:
    """Remove files, and then empty folders. Errors are ignored: nothing depends on it."""
    for name in names:
        with suppress(*storage_errors()):
            store.remove(name)
        folder = os.path.dirname(name)
        while folder and store.is_local:
            try:
                os.rmdir(store.path(folder))
            except OSError:
                break
            folder = os.path.dirname(folder)


class _Pace:
    """Limits how often something slow is done: every `every` seconds, or less often if it takes
    more than LARGEST_SHARE of the time."""

    def __init__(self, every: float):
        self._every = every
        self._due = time.monotonic() + every

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    @contextmanager
    def timed(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        now = time.monotonic()
        self._due = now + max(self._every, (now - started) / LARGEST_SHARE)


class _Appended:
    """A local file that is appended to."""

    is_there = True

    def __init__(self, store: Store, name: str):
        self._stream = store.new_file(name)
        self._pace = _Pace(SYNC_EVERY)

    def write(self, line: bytes) -> None:
        self._stream.write(line)
        self._stream.flush()
        if self._pace.is_due:
            with self._pace.timed():
                os.fsync(self._stream.fileno())

    def close(self) -> None:
        with self._stream:
            os.fsync(self._stream.fileno())

    def abandon(self) -> None:
        """Close the file, which will be removed."""
        with suppress(OSError):
            self._stream.close()


class _Chunks:
    """Objects on storage that cannot append: `<name>.0`, `<name>.1` and so on."""

    def __init__(self, store: Store, name: str):
        self._store, self._name = store, name
        self._pace = _Pace(CHUNK_EVERY)
        self._lines: list[bytes] = []
        self._count = 0

    @property
    def is_there(self) -> bool:
        """Whether there is an object."""
        return self._count > 0

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        if self._pace.is_due:
            with self._pace.timed():
                self.close()

    def close(self) -> None:
        """Write the lines that are not written yet."""
        if self._lines:
            self._store.write_bytes(f"{self._name}.{self._count}", b"".join(self._lines))
            self._lines = []
            self._count += 1

    def abandon(self) -> None:
        self._lines = []
