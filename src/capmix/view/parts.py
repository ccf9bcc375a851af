"""Fold the journal into parts: captions of the source that edits are written as, and an annotation.

`captions/<source>/<shard>.parquet` has one row per sample, in the pool's order. A sample whose text
was edited or accepted has that text; others are dropped as `not_edited`, `rejected`, or `stale`
where the image or the text that the edit was made from has changed since. Beside the columns of
other captions: `edited_at`, `author`, `base_source`.

`columns/review/<shard>.parquet` (`columns/<source>_review` for another source than `edited`) has
`decision` (accept, reject, undecided, stale), `tags`, `edited`, `at` and `author` of every sample.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.caption.fields import BY_PEOPLE, NEEDED
from capmix.caption.flags import caption_flags
from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.columns import one_array
from capmix.pool import Shard
from capmix.storage.draft import MadeMeanwhileError
from capmix.storage.layout import (
    EDITS,
    SAMPLES,
    annotation_folder,
    captions_folder,
    texts_folder,
)
from capmix.storage.lock import folder_lock
from capmix.storage.marker import Counts, Marker
from capmix.storage.names import check_source_name
from capmix.storage.rows import DROPPED, FAILED, OK, STATUS_FIELDS
from capmix.storage.store import Store
from capmix.view.journal import REJECT, Journal, Review
from capmix.view.samples import ShardTexts, base_source, read_shard, text_digest
from capmix.view.settings import SOURCE

log = logging.getLogger(__name__)
MODEL = BY_PEOPLE
CAPTION_FIELDS = [
    *NEEDED,
    ("edited_at", pa.string()),
    ("author", pa.string()),
    ("base_source", pa.string()),
]
REVIEW_FIELDS = [
    ("decision", pa.string()),
    ("tags", pa.list_(pa.string())),
    ("edited", pa.bool_()),
    ("at", pa.string()),
    ("author", pa.string()),
]
UNDECIDED, STALE = "undecided", "stale"
IMAGE = "image"  # what may have changed, beside a text
NOT_EDITED, REJECTED = "not_edited", "rejected"
DETAILS = {
    NOT_EDITED: "nobody has edited or accepted a text of it",
    REJECTED: "it was rejected",
    STALE: "its image, or the text that was edited, has changed since",
}


def journal_folder(store: Store, source: str) -> str:
    """Where the journal of a source is: a local path."""
    return store.path(f"{EDITS}/{source}")


def review_name(source: str) -> str:
    """The annotation that decisions and tags are written as."""
    return "review" if source == SOURCE else f"{source}_review"


def check_free(store: Store, source: str) -> None:
    """Raise UserError where the name is none of a source, or parts of it are somebody else's."""
    check_source_name(source)
    for folder in (captions_folder(source), annotation_folder(review_name(source))):
        for part in store.parts(folder)[:1]:
            marker = store.read_marker(part)
            if marker is not None and marker.config.get("model") != MODEL:
                raise UserError(
                    f"{store.path(folder)} was not written by capmix view; name the edits "
                    "otherwise with --source"
                )


def stale_at(review: Review, texts: ShardTexts, row: int) -> list[str]:
    """What has changed since the review of a sample was made: "image", the name of its base.

    A rejection is about the sample, whatever its texts are. Texts of a source that is not there, or
    that cannot be read, have not changed as far as is known.
    """
    found = []
    if review.image and texts.image(row) not in ("", review.image):
        found.append(IMAGE)
    is_of_text = review.base and review.decision != REJECT and _is_known(review.base, texts)
    if is_of_text and text_digest(texts.text(review.base, row)) != review.base_digest:
        found.append(review.base)
    return found


def _is_known(base: str, texts: ShardTexts) -> bool:
    """Whether the shard has texts of the source that `base` is of."""
    return base_source(base, texts.names) in texts.names


@dataclass
class Folded:
    """Shards whose parts were written, those whose parts were as they should be, those that are not
    indexed, those that stay as they were since a text that edits were made from cannot be read, and
    those without an edit that have no parts yet; reviews that belong to `no_sample`."""

    written: int = 0
    kept: int = 0
    not_indexed: int = 0
    unreadable: list[str] = field(default_factory=list)
    left: int = 0
    no_sample: int = 0

    def line(self) -> str:
        said = f"{self.written:,} shards written, {self.kept:,} up to date"
        said += f", {self.not_indexed:,} not indexed yet" if self.not_indexed else ""
        if self.unreadable:
            said += f", {len(self.unreadable):,} left as they were (see the log)"
        said += f", {no_sample_text(self.no_sample)}" if self.no_sample else ""
        fold = (
            "without parts; `capmix view --fold` writes them before other commands read the source"
        )
        return said + (f", {self.left:,} {fold}" if self.left else "")


def no_sample_text(count: int) -> str:
    """What is said of reviews whose samples the pool does not have."""
    return f"{count:,} reviews of samples that the pool does not have: kept in the journal"


class _UnreadableError(UserError):
    """A text that edits were made from cannot be read: what has changed is not known."""


@dataclass(frozen=True)
class Folder:
    """Writes the parts of one journal."""

    catalog: Catalog
    journal: Journal
    source: str

    @property
    def store(self) -> Store:
        return self.catalog.store

    def fold(
        self, shards: Sequence[Shard], around: Callable[[Iterable[Shard]], Iterable[Shard]] = iter
    ) -> Folded:
        """Write the parts of these shards that the journal does not agree with, one process at a
        time; `around` may show progress."""
        found = Folded()
        with folder_lock(self.store.path(f"{EDITS}/{self.source}/folding")):
            self.journal.refresh()
            for shard in around(shards):
                if self.store.read_marker(f"{SAMPLES}/{shard.name}") is None:
                    found.not_indexed += 1
                elif self.is_folded(shard):
                    found.kept += 1
                elif self._is_written(shard):
                    found.written += 1
                else:
                    found.unreadable.append(shard.name)
        return found

    def _is_written(self, shard: Shard) -> bool:
        """False where the parts stay as they were, which is logged."""
        try:
            self._write(shard)
        except _UnreadableError as error:
            log.warning("view: shard %s keeps the edits written before: %s", shard.name, error)
            return False
        return True

    def left(self) -> int:
        """Shards of the pool that have no part."""
        return len(self.catalog.pool.shards) - len(self.store.parts(self._folders[0]))

    def is_folded(self, shard: Shard) -> bool:
        """Whether the parts of a shard are what the journal and their inputs make of it."""
        digest = self.journal.digest(shard.name)
        inputs = self._inputs(shard, self.journal.reviews(shard.name))
        for folder in self._folders:
            part = f"{folder}/{shard.name}"
            marker = self.store.read_marker(part)
            if marker is None or marker.extra.get("edits") != digest:
                return False
            if not self.store.is_done(part, inputs, self._config):
                return False
        return True

    @property
    def _folders(self) -> tuple[str, str]:
        return captions_folder(self.source), annotation_folder(review_name(self.source))

    @property
    def _config(self) -> dict[str, Any]:
        return {"model": MODEL, "source": self.source}

    def _inputs(self, shard: Shard, reviews: dict[str, Review]) -> dict[str, str]:
        """The index, and the texts that edits were made from."""
        sources = self.catalog.sources()
        bases = {base_source(one.base, sources) for one in reviews.values() if one.base}
        folders = sorted({SAMPLES, *(texts_folder(one) for one in bases if one in sources)})
        return {one: self.store.fingerprint(f"{one}/{shard.name}") for one in folders}

    def _write(self, shard: Shard) -> None:
        reviews = self.journal.reviews(shard.name)
        digest = self.journal.digest(shard.name)
        inputs = self._inputs(shard, reviews)
        part = f"{SAMPLES}/{shard.name}.parquet"
        samples = self.store.read_table(part, [name for name, _ in STATUS_FIELDS])
        stale = self._stale(shard, reviews)
        known = _Known(samples, reviews, stale)
        if self._inputs(shard, reviews) != inputs:
            raise UserError(
                f"view: shard {shard.name} was written again meanwhile; save the edits once more"
            )
        tables = (known.captions(), known.annotation())
        for folder, table in zip(self._folders, tables, strict=True):
            counts = _counts(table)
            extra = {"edits": digest}
            columns = tuple(table.column_names)
            marker = Marker(inputs, self._config, len(table), counts, extra, columns=columns)
            with self.store.draft(f"{folder}/{shard.name}") as draft, suppress(MadeMeanwhileError):
                draft.write_table(f"{folder}/{shard.name}.parquet", table)
                draft.commit(marker)

    def _stale(self, shard: Shard, reviews: dict[str, Review]) -> dict[str, list[str]]:
        """What has changed since, by uid. Raises _UnreadableError."""
        if not reviews:
            return {}
        texts = read_shard(self.catalog, shard, None)
        sources = [*texts.names, *texts.unread]
        if {base_source(one.base, sources) for one in reviews.values()} & set(texts.unread):
            raise _UnreadableError(f"{'; '.join(texts.notes)}. Repair it and run view --fold")
        rows = ((uid, texts.rows.get(uid)) for uid in reviews)
        return {uid: stale_at(reviews[uid], texts, row) for uid, row in rows if row is not None}


class _Known:
    """The samples of a shard beside what is said about them."""

    def __init__(self, samples: pa.Table, reviews: dict[str, Review], stale: dict[str, list[str]]):
        self.samples, self.is_ok = samples, pc.equal(samples["status"], OK)
        ok = self.is_ok.to_numpy()
        uids = pa.array(list(reviews), pa.string())
        rows = pc.fill_null(pc.index_in(uids, value_set=one_array(samples["uid"])), -1).to_numpy()
        touched = [
            (row, uid) for row, uid in zip(rows, reviews, strict=True) if row >= 0 and ok[row]
        ]
        self.reviews = [reviews[uid] for _, uid in touched]
        self.stale = [stale.get(uid, []) for _, uid in touched]
        places = np.full(len(samples), len(touched), np.int64)
        places[[row for row, _ in touched]] = np.arange(len(touched))
        self.places = pa.array(places, mask=~ok)

    def captions(self) -> pa.Table:
        kept = [
            _outcome(one, bool(stale)) for one, stale in zip(self.reviews, self.stale, strict=True)
        ]
        outcome = self._spread([*kept, NOT_EDITED], pa.string())
        is_text = pc.fill_null(pc.equal(outcome, OK), False)
        status = pc.if_else(self.is_ok, DROPPED, self.samples["status"])
        reason = pc.if_else(self.is_ok, outcome, self.samples["reason"])
        details = [DETAILS.get(one) for one in [*kept, NOT_EDITED]]
        detail = self._spread(details, pa.string())
        columns = {
            "uid": self.samples["uid"],
            "key": self.samples["key"],
            "status": pc.if_else(is_text, OK, status),
            "reason": pc.if_else(is_text, pa.scalar(None, pa.string()), reason),
            "detail": pc.if_else(self.is_ok, detail, self.samples["detail"]),
        }
        nothing = (None,) * len(CAPTION_FIELDS)
        rows = [
            (0, one.text, "stop", caption_flags(one.text or "", "stop"), one.at, one.by, one.base)
            if found == OK
            else nothing
            for one, found in zip(self.reviews, kept, strict=True)
        ]
        return self._table(columns, CAPTION_FIELDS, [*rows, nothing])

    def annotation(self) -> pa.Table:
        """Of a sample that nobody has touched too there is a decision and a list of tags: a
        condition on null would never be true."""
        rows = [
            (
                STALE if stale else one.decision or UNDECIDED,
                [] if IMAGE in stale else list(one.tags),
                one.edited and not stale,
                one.at,
                one.by,
            )
            for one, stale in zip(self.reviews, self.stale, strict=True)
        ]
        untouched: tuple[Any, ...] = (UNDECIDED, [], False, None, None)
        columns = {name: self.samples[name] for name, _ in STATUS_FIELDS}
        return self._table(columns, REVIEW_FIELDS, [*rows, untouched])

    def _table(
        self,
        columns: dict[str, Any],
        fields: Sequence[tuple[str, pa.DataType]],
        rows: Sequence[tuple[Any, ...]],
    ) -> pa.Table:
        found = dict(columns)
        for place, (name, kind) in enumerate(fields):
            found[name] = self._spread([row[place] for row in rows], kind)
        return pa.table(found)

    def _spread(self, values: Sequence[Any], kind: pa.DataType) -> pa.Array:
        """Values of the touched samples, and at their end that of all others that are ok; null
        for samples that are not."""
        return pa.array(values, kind).take(self.places)


def _outcome(review: Review, is_stale: bool) -> str:
    """OK, or why the sample has no text."""
    if review.decision == REJECT and not is_stale:
        return REJECTED
    if review.text is None:
        return NOT_EDITED
    return STALE if is_stale else OK


def _counts(table: pa.Table) -> Counts:
    counts = Counts()
    for group in table.group_by(["status", "reason"]).aggregate([([], "count_all")]).to_pylist():
        number, reason = group["count_all"], group["reason"] or ""
        if group["status"] == OK:
            counts.ok += number
        else:
            (counts.failed if group["status"] == FAILED else counts.dropped)[reason] += number
    return counts
