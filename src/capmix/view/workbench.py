"""The workbench: list, search and change samples. HTTP is handled in server.py.

A query covers one shard or the whole pool. In an indexed pool of up to MOST_SHARDS shards and
MOST_SAMPLES samples, all texts are searched and all matches counted. A larger pool is searched
shard by shard until there are enough matches or SECONDS have passed; the result says where to
resume. Filters on the journal (accepted, rejected, tagged, edited) always cover the whole pool.
"""

import re
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.pool import Shard
from capmix.storage.layout import RAW, SAMPLES
from capmix.storage.record import digest_of
from capmix.view.journal import ACCEPT, DECISIONS, REJECT, Change, ConflictError, Journal, Review
from capmix.view.parts import Folded, Folder, stale_at
from capmix.view.places import find_places
from capmix.view.samples import (
    LONGEST_TEXT,
    ShardCache,
    ShardTexts,
    base_source,
    text_digest,
)

MOST_SHARDS, MOST_SAMPLES = 200, 250_000  # larger pools are searched shard by shard
SECONDS = 2.0  # time limit of a search in a larger pool
MOST_ROWS = 200  # rows per response
MOST_CHANGES = 50_000  # samples changed by one find and replace
PREVIEWED = 200
MOST_REPLACED = 2**26  # maximum output characters of one step of find and replace
MOST_TAGS, LONGEST_TAG = 32, 64
LONGEST_QUERY = 1000
CURRENT = "current"  # the edited text if there is one, else the base text
ALL = "all"
JOURNALED = ("accepted", "rejected", "tagged", "edited", "stale")
FILTERS = (ALL, "untouched", *JOURNALED, "flagged", "no-text")


class BadRequestError(UserError):
    """The request is invalid."""


class UnknownError(UserError):
    """The shard or sample does not exist."""


@dataclass(frozen=True)
class Query:
    """A query for samples of `shard` ("" for the whole pool).

    `find` is searched in the texts of `within` ("" for all texts), literally or as a regular
    expression (RE2); with `word`, only whole words match, in any script. `keep` is one of FILTERS
    or `tag:NAME`.
    """

    shard: str = ""
    find: str = ""
    within: str = ""
    regex: bool = False
    case: bool = False
    word: bool = False
    keep: str = ALL
    base: str = RAW

    def checked(self) -> "Query":
        """Return the query. Raises BadRequestError if it is invalid."""
        if len(self.find) > LONGEST_QUERY:
            raise BadRequestError(f"search text exceeds {LONGEST_QUERY:,} characters")
        if self.keep not in FILTERS and not self.keep.startswith("tag:"):
            raise BadRequestError(f"unknown filter {self.keep!r}")
        if self.regex and self.word:
            raise BadRequestError("whole words cannot be combined with a regular expression")
        if self.regex and self.find:
            try:
                pc.match_substring_regex(pa.array([""]), self.pattern)
            except pa.ArrowInvalid as error:
                why = str(error).partition(":")[2].strip() or str(error)
                raise BadRequestError(f"regular expression: {why}") from error
        return self

    @property
    def pattern(self) -> str:
        """The regular expression (RE2) to search for."""
        return self.find if self.regex else _quoted(self.find)


@dataclass(frozen=True)
class Start:
    """Where a list starts: shard number, row, and direction."""

    shard: int = 0
    row: int = 0
    backwards: bool = False
    limit: int = 60


class Workbench:
    """A pool under review. Thread-safe."""

    def __init__(self, catalog: Catalog, cache: ShardCache, journal: Journal, source: str):
        self.catalog, self.cache, self.journal, self.source = catalog, cache, journal, source
        self.shards: Sequence[Shard] = catalog.pool.shards
        self.is_small = self._is_small()
        self._numbers = {shard.name: number for number, shard in enumerate(self.shards)}
        self._folder = Folder(catalog, journal, source)
        self._unfolded: set[str] = set()
        self._folding = Lock()
        self._settled = 0
        self._settle()

    def _is_small(self) -> bool:
        """Return whether queries cover the whole pool at once."""
        if len(self.shards) > MOST_SHARDS:
            return False
        store = self.catalog.store
        markers = [store.read_marker(f"{SAMPLES}/{shard.name}") for shard in self.shards]
        return sum(MOST_SAMPLES if m is None else m.rows_in for m in markers) <= MOST_SAMPLES

    # Reading

    def about(self) -> dict[str, Any]:
        """Return the state of the journal for the page: undo, unsaved edits, counts."""
        self._refresh()
        can_undo, can_redo = self.journal.can_undo()
        return {
            "journal": {
                "lines": self.journal.lines,
                "damaged": self.journal.damaged,
                "undo": can_undo,
                "redo": can_redo,
                "unsaved": len(self._unfolded),
                "noSample": self.journal.no_sample,
            },
            "counts": self.journal.counts(),
        }

    def pool(self) -> dict[str, Any]:
        """Return the values that stay constant while the page is open."""
        return {
            "pool": self.catalog.pool.location,
            "work": self.catalog.store.location,
            "shards": len(self.shards),
            "names": [shard.name for shard in self.shards] if self.is_small else [],
            "small": self.is_small,
            "images": self.catalog.pool.has_images,
            "source": self.source,
            "author": self.journal.author,
            "readOnly": self.journal.is_read_only,
            "sources": [one for one in self.catalog.sources() if one != self.source],
            "scorer": self.cache.scorer,
            "filters": list(FILTERS),
            "longest": LONGEST_TEXT,
            "tags": {"most": MOST_TAGS, "longest": LONGEST_TAG},
        }

    def shard(self, name: str) -> Shard:
        """Return a shard by name, or by number starting at 1. Raises UnknownError."""
        if name in self._numbers:
            return self.shards[self._numbers[name]]
        number = _whole(name) - 1
        if 0 <= number < len(self.shards):
            return self.shards[number]
        raise UnknownError(f"no shard {name[:100]!r}; the pool has {len(self.shards):,}")

    def place(self, name: str = "", number: str = "") -> dict[str, Any]:
        """Return name and number (starting at 0) of a shard.

        The shard is given by `name` (see `shard`) or, if that is empty, by `number` starting at 0,
        which is never read as a name. Raises UnknownError.
        """
        if not name:
            found = _whole(number)
            if not 0 <= found < len(self.shards):
                raise UnknownError(
                    f"no shard number {number[:100]!r}; the pool has {len(self.shards):,}"
                )
            return {"number": found, "name": self.shards[found].name}
        shard = self.shard(name)
        return {"number": self._numbers[shard.name], "name": shard.name}

    def listed(self, query: Query, start: Start) -> dict[str, Any]:
        """Return matching samples in pool order, the number of matches if all were counted, and
        where the rest starts."""
        query = query.checked()
        self._refresh()
        began, limit = time.monotonic(), max(1, min(start.limit, MOST_ROWS))
        counts_all = bool(query.shard) or self.is_small
        rows: list[dict[str, Any]] = []
        matches = before = looked = samples = 0
        rest: tuple[int, int] | None = None
        notes: list[str] = []
        for number in self._order(query, start):
            if not counts_all and (len(rows) >= limit or time.monotonic() - began > SECONDS):
                rest = rest or (number, -1 if start.backwards else 0)
                break
            texts = self.cache.read(self.shards[number])
            notes += [f"shard {texts.shard}: {note}" for note in texts.notes]
            found = np.flatnonzero(self._mask(texts, query))
            looked, samples = looked + 1, samples + len(texts)
            matches += len(found)
            here, is_past = self._from(found, number, start)
            before += len(found) - len(here) if not is_past or start.backwards else 0
            if start.backwards:
                here = here[::-1]
            taken = here[: limit - len(rows)]
            if len(taken) < len(here) and rest is None:
                rest = number, int(here[len(taken)])
            rows += [self._row(texts, int(row)) for row in taken]
        return {
            "rows": rows[::-1] if start.backwards else rows,
            "matches": matches if counts_all else None,
            "before": before if counts_all and not start.backwards else None,
            "rest": rest,
            "looked": looked,
            "of": 1 if query.shard else len(self.shards),
            "samples": samples,
            "notes": notes[:10],
        } | self.about()

    def sample(self, shard: str, key: str) -> dict[str, Any]:
        """Return a sample by key, by uid, or by number starting at 1."""
        self.journal.refresh()
        texts = self.cache.read(self.shard(shard))
        return self._row(texts, self._row_of(texts, key))

    def find(self, shard: str, key: str, everywhere: bool = False) -> tuple[int, int]:
        """Return the shard number and row of a sample, given by key, uid or number starting at 1.

        Searches `shard`, or with `everywhere` the whole pool if it is small. Raises UnknownError.
        """
        if not (everywhere and self.is_small):
            one = self.shard(shard)
            return self._numbers[one.name], self._row_of(self.cache.read(one), key)
        sizes = []
        for number, one in enumerate(self.shards):
            texts = self.cache.read(one)
            sizes.append(len(texts))
            row = self._named(texts, key)
            if row is not None:
                return number, row
        wanted = _whole(key) - 1
        for number, size in enumerate(sizes):
            if 0 <= wanted < size:
                return number, wanted
            wanted -= size
        raise UnknownError(
            f"no sample {key[:200]!r} in the pool: expected a number up to {sum(sizes):,}, "
            "a key or a uid"
        )

    @staticmethod
    def _named(texts: ShardTexts, key: str) -> int | None:
        """Return the row of a uid or key, or None."""
        if key in texts.rows:
            return texts.rows[key]
        row = pc.index(texts.table["key"], key).as_py()
        return int(row) if row >= 0 else None

    def _row_of(self, texts: ShardTexts, key: str) -> int:
        row = self._named(texts, key)
        if row is not None:
            return row
        if 0 < _whole(key) <= len(texts):
            return _whole(key) - 1
        raise UnknownError(
            f"no sample {key[:200]!r} in shard {texts.shard}: expected a number up to "
            f"{len(texts):,}, a key or a uid"
        )

    def _order(self, query: Query, start: Start) -> Iterable[int]:
        """Return the numbers of the shards to search; all of them if all matches are counted."""
        if query.shard:
            return [self._numbers[self.shard(query.shard).name]]
        last = len(self.shards)
        if not 0 <= start.shard < last:
            raise UnknownError(f"no shard number {start.shard + 1}; the pool has {last:,}")
        known: Sequence[int] = range(last)
        if query.keep in JOURNALED or query.keep.startswith("tag:"):
            known = sorted(self._numbers[s] for s in self.journal.shards() if s in self._numbers)
        if start.backwards:
            known = known[::-1]
        if self.is_small:
            return known
        return (n for n in known if (n <= start.shard if start.backwards else n >= start.shard))

    @staticmethod
    def _from(found: np.ndarray, number: int, start: Start) -> tuple[np.ndarray, bool]:
        """Return the rows of a shard at or after the start, and whether the whole shard is after
        it."""
        if number == start.shard:
            row = start.row
            if start.backwards:
                return (found if row < 0 else found[found <= row]), False
            return found[found >= row], False
        is_past = number < start.shard if start.backwards else number > start.shard
        return (found if is_past else found[:0]), is_past

    def _mask(self, texts: ShardTexts, query: Query) -> np.ndarray:
        """Return bool (N,), true for matching samples of a shard."""
        found = self._kept(texts, query)
        if not query.find or not found.any():
            return found
        reviews = self.journal.reviews(texts.shard)
        edited = self._edited(texts, reviews)
        if query.within == CURRENT:
            columns = [self._current(texts, query.base, edited)]
        elif query.within == self.source:
            columns = [edited]
        elif query.within:
            columns = [texts.texts(query.within)]
        else:
            columns = [edited, *(texts.texts(name) for name in texts.names)]
        hit = np.zeros(len(texts), bool)
        for column in columns:
            if column is not None:
                hit |= _matches(column, query)
        return np.asarray(found & hit)

    def _kept(self, texts: ShardTexts, query: Query) -> np.ndarray:
        if query.keep == ALL:
            return np.ones(len(texts), bool)
        if query.keep == "flagged":
            return texts.flagged()
        if query.keep == "no-text":
            name = query.within if query.within not in (CURRENT, self.source) else ""
            return texts.without_text(name)
        found = np.zeros(len(texts), bool)
        is_untouched = query.keep == "untouched"
        for uid, review in self.journal.reviews(texts.shard).items():
            row = texts.rows.get(uid)
            if row is not None:
                found[row] = is_untouched or self._is_kept(review, query.keep, texts, row)
        return ~found if is_untouched else found

    @staticmethod
    def _is_kept(review: Review, keep: str, texts: ShardTexts, row: int) -> bool:
        if keep.startswith("tag:"):
            return keep.removeprefix("tag:") in review.tags
        if keep == "stale":
            return bool(stale_at(review, texts, row))
        return {
            "accepted": review.decision == ACCEPT,
            "rejected": review.decision == REJECT,
            "tagged": bool(review.tags),
            "edited": review.edited,
        }[keep]

    @staticmethod
    def _edited(texts: ShardTexts, reviews: Mapping[str, Review]) -> pa.Array | None:
        """Return string (N,), texts that were written or accepted; None if there are none."""
        known = [
            (texts.rows[uid], review.text)
            for uid, review in reviews.items()
            if review.text is not None and uid in texts.rows
        ]
        if not known:
            return None
        places = np.full(len(texts), -1, np.int64)
        places[[row for row, _ in known]] = np.arange(len(known))
        values = pa.array([text for _, text in known], pa.string())
        return values.take(pa.array(places, mask=places < 0))

    @staticmethod
    def _current(texts: ShardTexts, base: str, edited: pa.Array | None) -> pa.Array | None:
        of_base = texts.texts(base)
        if edited is None or of_base is None:
            return of_base if edited is None else edited
        return pc.coalesce(edited, of_base)

    def _row(self, texts: ShardTexts, row: int) -> dict[str, Any]:
        found = texts.as_json(row)
        review = self.journal.review(texts.shard, found["uid"])
        found["texts"] = [
            one for one in found["texts"] if base_source(one["name"], [self.source]) != self.source
        ]
        found["version"] = self.journal.version(texts.shard, found["uid"])
        found["number"] = self._numbers[texts.shard]
        found["of"] = len(texts)
        found["review"] = None
        if review is not None:
            found["review"] = {
                "text": review.text, "base": review.base, "edited": review.edited,
                "decision": review.decision, "tags": list(review.tags),
                "at": review.at, "by": review.by, "stale": stale_at(review, texts, row),
                "score": self._own_score(texts, row, review),
            }  # fmt: skip
        return found

    def _own_score(self, texts: ShardTexts, row: int, review: Review) -> float | None:
        """Return the score of the edited text, if its current version has been scored."""
        if self.source not in texts.names or texts.text(self.source, row) != review.text:
            return None
        name = f"{self.source}_score"
        value = texts.table[name][row].as_py() if name in texts.table.column_names else None
        return None if value is None else float(f"{value:.4f}")

    # Changing

    def act(self, shard: str, uid: str, seen: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Change one sample.

        `wanted` can have `text` (null removes it), `decision`, `tags`, `base` with `digest` (of the
        displayed base text), and `confirm` (a stale review is still valid). Raises BadRequestError,
        UnknownError and ConflictError.
        """
        asked = _Edit.of(wanted)
        texts = self.cache.read(self.shard(shard))
        if uid not in texts.rows:
            raise UnknownError(f"no sample {uid!r} in shard {shard}")
        row = texts.rows[uid]
        self._check_base(texts, asked.base)
        if asked.base is not None and text_digest(texts.text(asked.base, row)) != asked.digest:
            raise ConflictError(
                f"the text of {asked.base} has changed since it was displayed; review it again"
            )
        change = partial(asked.applied, texts, row)
        self.journal.act(asked.what, [(texts.shard, uid, seen, change)])
        self._unfolded.add(texts.shard)
        return {"row": self._row(texts, row)} | self.about()

    def _check_base(self, texts: ShardTexts, base: str | None) -> None:
        if base is not None and (
            base not in texts.names or base_source(base, [self.source]) == self.source
        ):
            raise BadRequestError(f"base: no text {base!r} in shard {texts.shard}")

    def undo(self, is_redo: bool = False) -> dict[str, Any]:
        """Undo or redo the author's last action; return the changed samples."""
        found = self.journal.redo() if is_redo else self.journal.undo()
        if found is None:
            raise BadRequestError(f"nothing to {'redo' if is_redo else 'undo'}")
        what, changes = found
        self._unfolded |= {change.shard for change in changes}
        return {"what": what, "changed": len(changes), "rows": self._rows(changes)} | self.about()

    def _rows(self, changes: Sequence[Change]) -> list[dict[str, Any]]:
        """Return the current state of the first MOST_ROWS changed samples."""
        rows = []
        for change in changes[:MOST_ROWS]:
            if change.shard in self._numbers:
                texts = self.cache.read(self.shard(change.shard))
                if change.uid in texts.rows:
                    rows.append(self._row(texts, texts.rows[change.uid]))
        return rows

    def replacements(self, query: Query, new: str) -> dict[str, Any]:
        """Preview find and replace on the current texts.

        Returns the number of samples, the first ones before and after, a digest to pass to
        `replace`, and how many matches are skipped because they are stale or too long.
        """
        left_out = {"stale": 0, "long": 0}
        found = list(self._replaced(query, new, left_out))
        shown = [
            {"shard": one.texts.shard, "key": one.texts.table["key"][one.row].as_py(),
             "uid": one.uid, "before": one.before, "after": one.after}
            for one in found[:PREVIEWED]
        ]  # fmt: skip
        return {
            "count": len(found), "shown": shown, "digest": _digest(found), "leftOut": left_out
        }  # fmt: skip

    def replace(self, query: Query, new: str, digest: str) -> dict[str, Any]:
        """Apply what `replacements` previewed. Raises ConflictError if the texts have changed."""
        found = list(self._replaced(query, new, {}))
        if _digest(found) != digest:
            raise ConflictError("texts have changed since the preview; preview again")
        asked = [
            (
                one.texts.shard,
                one.uid,
                one.version,
                partial(_Edit(text=one.after, base=one.base).applied, one.texts, one.row),
            )
            for one in found
        ]
        changes = self.journal.act("replace", asked)
        self._unfolded |= {change.shard for change in changes}
        return {"changed": len(changes), "rows": self._rows(changes)} | self.about()

    def _replaced(self, query: Query, new: str, left_out: dict[str, int]) -> Iterator["_Replaced"]:
        """Yield the changed texts; count skipped ones in `left_out` by reason."""
        query = replace(query, within=CURRENT).checked()
        new = _clean(new)
        if not query.find:
            raise BadRequestError("find: expected a text")
        if not query.shard and not self.is_small:
            raise BadRequestError("the pool is too large for one replacement; choose a shard")
        self._refresh()
        count = 0
        for number in self._order(query, Start()):
            texts = self.cache.read(self.shards[number])
            rows = np.flatnonzero(self._mask(texts, query))
            reviews = self.journal.reviews(texts.shard)
            current = self._current(texts, query.base, self._edited(texts, reviews))
            if current is None or not len(rows):
                continue
            self._check_base(texts, query.base)
            before = current.take(pa.array(rows))
            after = _substituted(before, query, new)
            uids = texts.table["uid"].take(pa.array(rows)).to_pylist()
            for row, uid, old, made in zip(
                rows.tolist(), uids, before.to_pylist(), after, strict=True
            ):
                if made == old or made == "":  # do not delete captions
                    continue
                if uid in reviews and stale_at(reviews[uid], texts, row):
                    left_out["stale"] = left_out.get("stale", 0) + 1
                    continue
                if made is None:
                    left_out["long"] = left_out.get("long", 0) + 1
                    continue
                count += 1
                if count > MOST_CHANGES:
                    raise BadRequestError(
                        f"over {MOST_CHANGES:,} texts match; restrict it to a shard or a filter"
                    )
                review = reviews.get(uid)
                base = review.base if review is not None and review.text is not None else ""
                version = self.journal.version(texts.shard, uid)
                yield _Replaced(texts, row, uid, base or query.base, version, old, made)

    # Writing parts

    def save(self, everything: bool = False) -> dict[str, Any]:
        """Write the parts of shards with edits.

        In a small pool, or with `everything`, write the parts of all shards, which commands that
        read the source require.
        """
        return {"saved": self.fold(everything).line()} | self.about()

    def fold(self, everything: bool = False, around: Any = iter) -> Folded:
        with self._folding:
            self._refresh()
            self._settle()
            if not self.journal.lines:
                return Folded()
            before = set(self._unfolded)
            touched = self.journal.shards_named() | before
            wanted = [shard for shard in self.shards if shard.name in touched]
            if everything or len(self.shards) <= MOST_SHARDS:
                wanted += [shard for shard in self.shards if shard.name not in touched]
            found = self._folder.fold(wanted, around)
            found.left = self._folder.left() if len(wanted) < len(self.shards) else 0
            found.no_sample = self.journal.no_sample
            self._unfolded -= before - set(found.unreadable)
            return found

    def _refresh(self) -> None:
        self._unfolded |= self.journal.refresh()
        if self.cache.renewed != self._settled:
            self._settle()

    def _settle(self) -> None:
        """Find the current places of the journal's samples."""
        self._settled = self.cache.renewed
        found = find_places(self.catalog.store, self.catalog.pool, self.journal.named())
        self.journal.settle(found.moved, found.lost)


@dataclass(frozen=True)
class _Replaced:
    """One text changed by find and replace."""

    texts: ShardTexts
    row: int
    uid: str
    base: str
    version: int
    before: str
    after: str


def _digest(found: Sequence[_Replaced]) -> str:
    lines = (f"{o.texts.shard} {o.uid} {o.version} {text_digest(o.before)}\n" for o in found)
    return digest_of("".join(lines).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class _Edit:
    """A change of one sample. Fields that are None are unchanged; `drops_text` removes the text."""

    text: str | None = None
    drops_text: bool = False
    decision: str | None = None
    tags: tuple[str, ...] | None = None
    base: str | None = None
    digest: str = ""
    confirm: bool = False

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "_Edit":
        """Parse a request. Raises BadRequestError."""
        text = value.get("text")
        if text is not None and not isinstance(text, str):
            raise BadRequestError("text: expected a string or null")
        decision = value.get("decision")
        if decision is not None and decision not in DECISIONS:
            raise BadRequestError(f"decision: expected one of {', '.join(DECISIONS)!r}")
        base = value.get("base")
        if base is not None and not isinstance(base, str):
            raise BadRequestError("base: expected a string")
        text = None if text is None else clean_text(text)
        if "text" in value and not text and decision == ACCEPT:
            raise BadRequestError(
                "an empty caption cannot be accepted; write one, or reject the sample"
            )
        if text and base is None:
            raise BadRequestError("base: expected the name of the text that was edited")
        tags = value.get("tags")
        return cls(
            text or None,
            "text" in value and not text,
            decision,
            None if tags is None else clean_tags(tags),
            base,
            str(value.get("digest", "")),
            value.get("confirm") is True,
        )

    @property
    def what(self) -> str:
        """The name of the action, for the journal and `undo`."""
        if self.confirm:
            return "confirm"
        if self.text is not None:
            return "edit" if self.decision is None else f"edit and {self.decision or 'clear'}"
        if self.decision is not None:
            return self.decision or "clear"
        return "tag" if self.tags is not None else "clear text"

    def applied(self, texts: ShardTexts, row: int, before: Review) -> Review:
        """Return the review with this change applied."""
        if before.text is None and not before.decision and not before.tags:
            before = Review()
        is_stale = bool(stale_at(before, texts, row))
        is_renewed = self.confirm or self.text is not None or self.drops_text
        if is_stale and self.decision and not is_renewed:
            raise BadRequestError(
                "the image or the base text has changed since this review; confirm or rewrite the "
                "edit first"
            )
        review = replace(before, image=before.image or texts.image(row))
        if self.confirm or (is_stale and self.text is not None):
            known = text_digest(texts.text(before.base, row)) if before.base else ""
            review = replace(review, image=texts.image(row), base_digest=known)
        if self.tags is not None:
            review = replace(review, tags=self.tags)
        if self.text is not None:
            review = self._with_text(review, self.text, self.base or "", texts, row)
        if self.drops_text:
            review = replace(review, text=None, edited=False, base="", base_digest="")
        if self.decision is not None:
            review = replace(review, decision=self.decision)
            review = self._with_decision(review, texts, row)
        if review.text is not None and not review.edited and review.decision != ACCEPT:
            review = replace(review, text=None)  # same as the base text: not an edit
        if review.text is None and not review.decision:
            review = replace(review, base="", base_digest="")
        return review

    def _with_decision(self, review: Review, texts: ShardTexts, row: int) -> Review:
        """Accepting a sample without an edit accepts its base text unchanged."""
        if review.edited:
            return review
        if self.decision == ACCEPT and review.text is None and self.base:
            text = texts.text(self.base, row)
            if text is not None and text.strip():
                if len(text) > LONGEST_TEXT:
                    raise BadRequestError(f"the text exceeds {LONGEST_TEXT:,} characters")
                return self._with_text(review, text, self.base, texts, row)
        return review

    @staticmethod
    def _with_text(review: Review, text: str, base: str, texts: ShardTexts, row: int) -> Review:
        of_base = texts.text(base, row)
        return replace(
            review,
            text=text,
            base=base,
            base_digest=text_digest(of_base),
            edited=of_base is None or text.strip() != of_base.strip(),
        )


def clean_text(text: str) -> str:
    """Clean a text: strip whitespace, remove null characters, replace lone surrogates.

    Raises BadRequestError if it is longer than LONGEST_TEXT.
    """
    text = _clean(text).strip()
    if len(text) > LONGEST_TEXT:
        raise BadRequestError(
            f"the text has {len(text):,} characters; at most {LONGEST_TEXT:,} are allowed"
        )
    return text


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "").replace("\r\n", "\n")


def clean_tags(tags: Any) -> tuple[str, ...]:
    """Return distinct stripped tags in their order. Raises BadRequestError."""
    if not isinstance(tags, list) or not all(isinstance(one, str) for one in tags):
        raise BadRequestError("tags: expected a list of strings")
    found = tuple(dict.fromkeys(one.strip() for one in tags if one.strip()))
    if len(found) > MOST_TAGS:
        raise BadRequestError(f"tags: at most {MOST_TAGS} per sample")
    for tag in found:
        if len(tag) > LONGEST_TAG or not tag.isprintable() or "," in tag:
            raise BadRequestError(
                f"tags: expected up to {LONGEST_TAG} printable characters without a comma"
            )
    return found


def _whole(text: str) -> int:
    """Parse a number of up to 12 digits; return -1 for any other text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else -1


def _matches(column: pa.Array, query: Query) -> np.ndarray:
    if query.regex:
        found = pc.match_substring_regex(column, query.pattern, ignore_case=not query.case)
    else:
        found = pc.match_substring(column, query.find, ignore_case=not query.case)
    hit = np.array(pc.fill_null(found, False).to_numpy(zero_copy_only=False))
    if query.word:
        rows = np.flatnonzero(hit)
        texts = column.take(pa.array(rows)).to_pylist()
        hit[rows] = [next(_words(text, query), None) is not None for text in texts]
    return hit


def _words(text: str, query: Query) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each match that is not part of a longer word.

    Letters, digits and marks of all scripts, and _, are word characters.
    """
    wanted = re.compile(re.escape(query.find), 0 if query.case else re.IGNORECASE)
    start = 0
    while found := wanted.search(text, start):
        begin, end = found.span()
        is_inside = _is_one_word(text, begin) or _is_one_word(text, end)
        start = begin + 1 if is_inside else end
        if not is_inside:
            yield begin, end


def _is_one_word(text: str, at: int) -> bool:
    """Return whether the characters on both sides of a position belong to one word."""
    return 0 < at < len(text) and _is_of_word(text[at - 1]) and _is_of_word(text[at])


def _is_of_word(one: str) -> bool:
    return one.isalnum() or one == "_" or unicodedata.category(one).startswith("M")


def _substituted(column: pa.Array, query: Query, new: str) -> list[str | None]:
    """Return the texts with every match replaced; None for texts too long before or after.

    With a regular expression, `\\1` in `new` is its first group.
    """
    lengths = pc.utf8_length(column)
    column = pc.if_else(pc.greater(lengths, LONGEST_TEXT), pa.scalar(None, pa.string()), column)
    if query.word:
        made = [_with_words(text, query, new) for text in column]
    else:
        # Process few texts at a time, so that the output fits in memory however often they match.
        step = max(1, MOST_REPLACED // ((LONGEST_TEXT + 1) * (len(new) + 1)))
        pieces = (column.slice(begin, step) for begin in range(0, len(column), step))
        made = [text for piece in pieces for text in _substituted_at_once(piece, query, new)]
    return [_if_short(text) for text in made]


def _with_words(text: pa.StringScalar, query: Query, new: str) -> str | None:
    value = text.as_py()
    if value is None:
        return None
    pieces, last = [], 0
    for begin, end in _words(value, query):
        pieces += [value[last:begin], new]
        last = end
    return "".join([*pieces, value[last:]])


def _substituted_at_once(column: pa.Array, query: Query, new: str) -> list[str | None]:
    pattern = query.pattern if query.case else f"(?i){query.pattern}"
    replacement = new if query.regex else new.replace("\\", "\\\\")
    try:
        made = pc.replace_substring_regex(column, pattern=pattern, replacement=replacement)
    except pa.ArrowInvalid as error:
        raise BadRequestError(f"replace: {str(error).splitlines()[0]}") from error
    return [_if_short(text) for text in made.to_pylist()]


def _if_short(text: str | None) -> str | None:
    """Clean a text like clean_text; return None if it is too long."""
    if text is None:
        return None
    text = _clean(text).strip()
    return text if len(text) <= LONGEST_TEXT else None


def _quoted(text: str) -> str:
    """Return a regular expression (RE2) that matches a text literally."""
    return "".join(f"\\x{{{ord(one):x}}}" if not one.isalnum() else one for one in text)
