"""The journal of all user actions in `capmix view`; each is on disk before it is acknowledged.

Each action is one line of JSON, appended to `edits/<source>/journal.jsonl` under the folder's lock
and synced to disk. Lines of other servers are read before each action, so several tabs and servers
can share a journal. An action has the version of each sample that it changes, and is rejected if
the sample has been changed since. An incomplete last line (the process was killed while writing)
was never acknowledged, and is truncated before the next line is written.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from threading import RLock
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_object
from capmix.storage.lock import folder_lock
from capmix.storage.record import digest_of

log = logging.getLogger(__name__)
JOURNAL = "journal.jsonl"
LONGEST_LINE = 1 << 26  # bytes; enough for an action on very many samples
ACCEPT, REJECT = "accept", "reject"
DECISIONS = ("", ACCEPT, REJECT)
Place = tuple[str, str]  # shard and uid


class ConflictError(UserError):
    """A sample has been changed by another tab, server or user since the page read it."""


@dataclass(frozen=True)
class Review:
    """A user's review of one sample.

    `text` is the caption that was written or accepted, or None. `base` is the text it is based on
    (for example raw or blip2_k1), and `base_digest` the digest of that text. `edited` is true if
    `text` differs from the base text. `image` is the sample's digest in the index. `decision` is
    "accept", "reject" or "". `at` is a UTC time (ISO 8601), `by` the author.
    """

    text: str | None = None
    base: str = ""
    base_digest: str = ""
    edited: bool = False
    image: str = ""
    decision: str = ""
    tags: tuple[str, ...] = ()
    at: str = ""
    by: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no text, decision or tag; the sample then counts as untouched."""
        return self.text is None and not self.decision and not self.tags

    @classmethod
    def of(cls, value: Any) -> "Review":
        """Parse a review. Raises ValueError or TypeError if it is invalid."""
        found = cls(**(value | {"tags": tuple(value["tags"])}))
        words = [found.base, found.base_digest, found.image, found.at, found.by, *found.tags]
        if not all(isinstance(one, str) for one in [*words, found.text or ""]):
            raise ValueError("expected a string")
        if found.decision not in DECISIONS or not isinstance(found.edited, bool):
            raise ValueError("invalid decision")
        return found


@dataclass(frozen=True)
class Change:
    """One sample's review before (`was`) and after (`now`) an action; None for no review."""

    shard: str
    uid: str
    was: Review | None
    now: Review | None


@dataclass(frozen=True)
class Named:
    """What the lines about a place contain.

    `image` is the image last reviewed there ("" for none). `is_first` is true if the first line
    starts a review, and false if it changes a review made at another place.
    """

    image: str
    is_first: bool


@dataclass(frozen=True)
class Entry:
    """A line: its number, its position in the file, and the action that it undoes or redoes."""

    number: int
    offset: int
    size: int
    by: str
    what: str
    undoes: int = 0
    redoes: int = 0


@dataclass
class _State:
    """The state after all lines so far.

    `named` is keyed by the places in the lines; the other mappings by the samples' current places.
    """

    reviews: dict[str, dict[str, Review]] = field(default_factory=dict)
    versions: dict[str, dict[str, int]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    named: dict[Place, Named] = field(default_factory=dict)
    offset: int = 0
    lines: int = 0
    damaged: int = 0


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """The journal in a local folder and its current state. Thread-safe.

    With `is_read_only`, nothing is written. Raises UserError if the file cannot be read.
    """

    def __init__(
        self,
        folder: str,
        author: str = "",
        is_read_only: bool = False,
        now: Callable[[], str] = utc_now,
    ):
        self.folder, self.path = folder, os.path.join(folder, JOURNAL)
        self.author, self.is_read_only, self._now = author, is_read_only, now
        self._lock = RLock()
        self._state = _State()
        self._reported_damaged = 0
        self._moved: Mapping[Place, Place] = {}
        self._lost: frozenset[Place] = frozenset()
        self.refresh()

    def named(self) -> dict[Place, Named]:
        """Return a copy of the places that lines refer to."""
        with self._lock:
            return dict(self._state.named)

    def settle(self, moved: Mapping[Place, Place], lost: frozenset[Place]) -> None:
        """Map the places in lines to the current places of their samples, without writing anything.

        `lost` are the places whose samples are not in the pool.
        """
        with self._lock:
            self._lost = lost
            if moved != self._moved:
                self._moved, self._state = moved, _State()
                self._read() if os.path.exists(self.path) else None

    @property
    def no_sample(self) -> int:
        """Number of reviews whose samples are not in the pool."""
        with self._lock:
            return sum(self.review(*place) is not None for place in self._lost)

    def _place(self, shard: str, uid: str) -> Place:
        return self._moved.get((shard, uid), (shard, uid))

    def refresh(self) -> set[str]:
        """Read lines that other servers appended; return the shards that they change."""
        with self._lock:
            try:
                size = os.stat(self.path).st_size
            except (FileNotFoundError, NotADirectoryError):
                size = 0
            if size == self._state.offset:
                return set()
            if size < self._state.offset:  # the file was replaced manually
                before = set(self._state.reviews)
                self._state = _State()
                return before | (self._read() if size else set())
            return self._read()

    def _read(self) -> set[str]:
        """Read all complete lines from `offset` on; return the shards that they change."""
        state, changed = self._state, set[str]()
        try:
            with open(self.path, "rb") as stream:
                stream.seek(state.offset)
                while line := stream.readline(LONGEST_LINE + 1):
                    if not line.endswith(b"\n"):
                        break
                    changed |= self._take(line)
        except OSError as error:
            why = error.strerror or error
            raise UserError(f"cannot read the journal of edits {self.path}: {why}") from error
        if state.damaged > self._reported_damaged:
            self._reported_damaged = state.damaged
            log.warning(
                "view: %s: skipped %d damaged lines; all others are used",
                self.path, state.damaged,
            )  # fmt: skip
        return changed

    def _take(self, line: bytes) -> set[str]:
        state = self._state
        offset, state.offset = state.offset, state.offset + len(line)
        state.lines += 1
        try:
            entry, changes = _parsed(line, state.lines, offset)
        except (ValueError, TypeError, KeyError, AttributeError):
            state.damaged += 1
            return set()
        state.entries.append(entry)
        touched = set()
        for change in changes:
            name = change.shard, change.uid
            shard, uid = self._place(*name)
            touched |= {change.shard, shard}
            about = state.named.get(name)
            image = (change.now or change.was or Review()).image
            state.named[name] = Named(
                image, change.was is None if about is None else about.is_first
            )
            reviews = state.reviews.setdefault(shard, {})
            state.versions.setdefault(shard, {})[uid] = entry.number
            if change.now is None:
                reviews.pop(uid, None)
            else:
                reviews[uid] = change.now
        return touched

    @property
    def lines(self) -> int:
        """Number of lines read so far, including damaged ones."""
        return self._state.lines

    @property
    def damaged(self) -> int:
        return self._state.damaged

    def shards(self) -> list[str]:
        """Return the sorted names of shards that have reviews."""
        with self._lock:
            return sorted(shard for shard, found in self._state.reviews.items() if found)

    def shards_named(self) -> set[str]:
        """Return the shards that any action changed, including those without reviews now."""
        with self._lock:
            return {*self._state.versions, *(shard for shard, _ in self._state.named)}

    def reviews(self, shard: str) -> dict[str, Review]:
        """Return a copy of a shard's reviews by uid."""
        with self._lock:
            return dict(self._state.reviews.get(shard, {}))

    def review(self, shard: str, uid: str) -> Review | None:
        """Return the review of one sample, or None."""
        with self._lock:
            return self._state.reviews.get(shard, {}).get(uid)

    def version(self, shard: str, uid: str) -> int:
        """Return the line number of the last action on a sample; 0 for none."""
        with self._lock:
            return self._state.versions.get(shard, {}).get(uid, 0)

    def digest(self, shard: str) -> str:
        """Return the digest of a shard's reviews; "" if it has none."""
        found = self.reviews(shard)
        if not found:
            return ""
        rows = [[uid, asdict(found[uid])] for uid in sorted(found)]
        return digest_of(json.dumps(rows, sort_keys=True).encode())

    def counts(self) -> dict[str, int]:
        """Return the number of reviewed samples by kind of review, and by tag as `tag:NAME`."""
        found = dict.fromkeys(("touched", "edited", "accepted", "rejected", "tagged"), 0)
        with self._lock:
            for shard, of_shard in self._state.reviews.items():
                for uid, review in of_shard.items():
                    if (shard, uid) in self._lost:
                        continue
                    found["touched"] += 1
                    found["edited"] += review.edited
                    found["accepted"] += review.decision == ACCEPT
                    found["rejected"] += review.decision == REJECT
                    found["tagged"] += bool(review.tags)
                    for tag in review.tags:
                        found[f"tag:{tag}"] = found.get(f"tag:{tag}", 0) + 1
        return found

    def act(
        self,
        what: str,
        wanted: Sequence[tuple[str, str, int, Callable[[Review], Review]]],
    ) -> list[Change]:
        """Change samples; the change is on disk when this returns.

        `wanted` has for each sample its shard, its uid, the version that the page displayed (-1 for
        any), and a function that maps the current review to the new one. Raises ConflictError,
        without changing anything, if any of the samples has been changed since.
        """

        def changes() -> Iterable[Change]:
            at = self._now()
            for shard, uid, seen, change in wanted:
                if seen >= 0 and self.version(shard, uid) != seen:
                    raise ConflictError(
                        f"sample {uid} of shard {shard} has been changed in another tab or "
                        "server; review it again"
                    )
                was = self._state.reviews.get(shard, {}).get(uid)
                made = change(was or Review())
                now = None if made.is_empty else _stamped(made, at, self.author)
                if now is None and was is None:
                    continue
                if was is not None and now is not None and _stamped(was, at, self.author) == now:
                    continue
                yield Change(shard, uid, was, now)

        return self._append(what, changes)

    def undo(self) -> tuple[str, list[Change]] | None:
        """Undo this author's last action; return its name and changes, or None if there is none.

        Samples that have been changed since are left unchanged.
        """
        return self._reverted(is_undo=True)

    def redo(self) -> tuple[str, list[Change]] | None:
        """Redo the action that was undone last; see `undo`."""
        return self._reverted(is_undo=False)

    def can_undo(self) -> tuple[bool, bool]:
        """Return whether there is an action to undo, and one to redo."""
        with self._lock:
            done, undone = self._stacks()
            return bool(done), bool(undone)

    def _stacks(self) -> tuple[list[Entry], list[Entry]]:
        """Return this author's actions in effect and undone actions, without damaged lines."""
        done: list[Entry] = []
        undone: list[Entry] = []
        by_number = {entry.number: entry for entry in self._state.entries}
        for entry in self._state.entries:
            if entry.by != self.author:
                continue
            if entry.undoes:
                done = [one for one in done if one.number != entry.undoes]
                undone += [by_number[entry.undoes]] if entry.undoes in by_number else []
            elif entry.redoes:
                undone = [one for one in undone if one.number != entry.redoes]
                done += [by_number[entry.redoes]] if entry.redoes in by_number else []
            else:
                done.append(entry)
                undone = []
        return done, undone

    def _reverted(self, is_undo: bool) -> tuple[str, list[Change]] | None:
        self._check_writable()
        with self._lock:
            self.refresh()
            entry = next(iter(reversed(self._stacks()[0 if is_undo else 1])), None)
            if entry is None:
                return None
            before = self._changes_of(entry)

            def changes() -> Iterable[Change]:
                for one in before:
                    was, now = (one.now, one.was) if is_undo else (one.was, one.now)
                    shard, uid = self._place(one.shard, one.uid)
                    if self.review(shard, uid) == was:
                        yield Change(shard, uid, was, now)

            about = {"undoes" if is_undo else "redoes": entry.number}
            return entry.what, self._append(entry.what, changes, about)

    def _changes_of(self, entry: Entry) -> list[Change]:
        with open(self.path, "rb") as stream:
            stream.seek(entry.offset)
            return _parsed(stream.read(entry.size), entry.number, entry.offset)[1]

    def _append(
        self,
        what: str,
        make: Callable[[], Iterable[Change]],
        about: dict[str, int] | None = None,
    ) -> list[Change]:
        """Append a line with the changes that `make` returns under the lock.

        Without changes, no line is written, unless `about` marks it as an undo or redo.
        """
        self._check_writable()
        with self._lock, self._locked():
            self.refresh()
            changes = list(make())
            if not changes and not about:
                return []
            value: dict[str, Any] = {
                "at": self._now(),
                "by": self.author,
                "what": what,
                "set": [
                    [one.shard, one.uid, _as_json(one.was), _as_json(one.now)] for one in changes
                ],
                **(about or {}),
            }
            value["check"] = _check(value)
            line = json.dumps(value).encode() + b"\n"
            if len(line) > LONGEST_LINE:
                raise UserError(
                    f"an edit of {len(changes):,} samples is too large for one action "
                    f"({len(line):,} bytes); restrict it to a shard or a filter"
                )
            self._write(line)
            self._take(line)
            return changes

    def _check_writable(self) -> None:
        if self.is_read_only:
            raise UserError("edits are disabled: capmix view was started with --read-only")

    @contextlib.contextmanager
    def _locked(self) -> Any:
        try:
            lock = folder_lock(self.folder)
            lock.__enter__()
        except OSError as error:
            raise UserError(f"cannot write {self.folder}: {error.strerror or error}") from error
        with contextlib.ExitStack() as stack:
            stack.push(lock)
            yield

    def _write(self, line: bytes) -> None:
        """Write a line at `offset`; anything after it was never acknowledged and is truncated.

        On a disk error, restore the file and raise UserError.
        """
        offset = self._state.offset
        try:
            is_new = not os.path.exists(self.path)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            os.ftruncate(handle, offset)
            written = 0
            while written < len(line):
                written += os.pwrite(handle, line[written:], offset + written)
            os.fsync(handle)
            if is_new:
                _sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, offset)
            why = error.strerror or error
            raise UserError(f"cannot write {self.path}: {why}; the edit was not saved") from error
        finally:
            os.close(handle)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stamped(review: Review, at: str, by: str) -> Review:
    return Review(**(vars(review) | {"at": at, "by": by}))


def _as_json(review: Review | None) -> dict[str, Any] | None:
    return None if review is None else asdict(review)


def _check(value: dict[str, Any]) -> str:
    return digest_of(json.dumps(value, sort_keys=True).encode())


def _parsed(line: bytes, number: int, offset: int) -> tuple[Entry, list[Change]]:
    """Parse a line. Raises ValueError, TypeError, KeyError or AttributeError if it is damaged."""
    value = parse_object(line)
    if value.pop("check") != _check(value):
        raise ValueError("digest mismatch")
    entry = Entry(
        number,
        offset,
        len(line),
        str(value["by"]),
        str(value["what"]),
        int(value.get("undoes", 0)),
        int(value.get("redoes", 0)),
    )
    changes = []
    for shard, uid, *both in value["set"]:
        was, now = (None if one is None else Review.of(one) for one in both)
        changes.append(Change(str(shard), str(uid), was, now))
    return entry, changes
