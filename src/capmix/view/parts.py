"""Fold the journal into parts: the captions of the edited source, and an annotation.

`captions/<source>/<shard>.parquet` has one row per sample, in pool order. A sample whose text was
edited or accepted has that text. Others are dropped as `not_edited`, as `rejected`, or as `stale`
if the image or the base text has changed since the edit. In addition to the columns of other
captions there are `edited_at`, `author` and `base_source`.

`columns/review/<shard>.parquet` (`columns/<source>_review` for a source other than `edited`) has
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
from capmix.settings.counted import counted
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
IMAGE = "image"  # in stale_at: the image has changed
NOT_EDITED, REJECTED = "not_edited", "rejected"
DETAILS = {
    NOT_EDITED: "no text of the sample was edited or accepted",
    REJECTED: "the sample was rejected",
    STALE: "the image or the base text has changed since the edit",
}


def journal_folder(store: Store, source: str) -> str:
    """Return the local path of a source's journal folder."""
    return store.path(f"{EDITS}/{source}")


def review_name(source: str) -> str:
    """Return the name of the annotation for decisions and tags."""
    return "review" if source == SOURCE else f"{source}_review"


def check_free(store: Store, source: str) -> None:
    """Raise UserError if the name is not a valid source name, or its parts were written by another
    command."""
    check_source_name(source)
    for folder in (captions_folder(source), annotation_folder(review_name(source))):
        for part in store.parts(folder)[:1]:
            marker = store.read_marker(part)
            if marker is not None and marker.config.get("model") != MODEL:
                raise UserError(
                    f"{store.path(folder)} was not written by capmix view; choose another name "
                    "with --source"
                )


def stale_at(review: Review, texts: ShardTexts, row: int) -> list[str]:
    """Return what has changed since a sample was reviewed: "image", the name of its base text.

    A rejection concerns the sample and does not depend on its texts. Texts of a source that is
    missing or unreadable count as unchanged.
    """
    found = []
    if review.image and texts.image(row) not in ("", review.image):
        found.append(IMAGE)
    is_of_text = review.base and review.decision != REJECT and _is_known(review.base, texts)
    if is_of_text and text_digest(texts.text(review.base, row)) != review.base_digest:
        found.append(review.base)
    return found


def _is_known(base: str, texts: ShardTexts) -> bool:
    """Return whether the shard has texts of the source of `base`."""
    return base_source(base, texts.names) in texts.names


@dataclass
class Folded:
    """Counts of folded shards.

    `written` and `kept` count shards whose parts were written or were up to date. `unreadable` are
    shards left unchanged because a base text cannot be read. `left` counts shards without edits
    that have no parts yet, `no_sample` reviews whose samples are not in the pool.
    """

    written: int = 0
    kept: int = 0
    not_indexed: int = 0
    unreadable: list[str] = field(default_factory=list)
    left: int = 0
    no_sample: int = 0

    def line(self) -> str:
        line = f"{counted(self.written, 'shard')} written, {self.kept:,} up to date"
        line += f", {self.not_indexed:,} not indexed yet" if self.not_indexed else ""
        if self.unreadable:
            line += f", {len(self.unreadable):,} unchanged because of errors (see the log)"
        line += f", {no_sample_text(self.no_sample)}" if self.no_sample else ""
        fold = "without parts; run `capmix view --fold` before other commands read the source"
        return line + (f", {self.left:,} {fold}" if self.left else "")


def no_sample_text(count: int) -> str:
    """Return the message about reviews whose samples are not in the pool."""
    return f"{count:,} reviews of samples that are not in the pool (kept in the journal)"


class _UnreadableError(UserError):
    """A base text cannot be read, so it is unknown whether edits are stale."""


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
        """Write the parts of these shards that do not match the journal.

        Only one process folds at a time. `around` can wrap the shards to show progress.
        """
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
        """Write a shard's parts; log and return False if a base text is unreadable."""
        try:
            self._write(shard)
        except _UnreadableError as error:
            log.warning("view: shard %s: edits were not updated: %s", shard.name, error)
            return False
        return True

    def left(self) -> int:
        """Return the number of shards without parts."""
        return len(self.catalog.pool.shards) - len(self.store.parts(self._folders[0]))

    def is_folded(self, shard: Shard) -> bool:
        """Return whether a shard's parts match the journal and their inputs."""
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
        """Return the fingerprints of the index and of the base texts."""
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
                f"view: inputs of shard {shard.name} changed while writing; write the parts again"
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
        """Return what has changed since each review, by uid. Raises _UnreadableError."""
        if not reviews:
            return {}
        texts = read_shard(self.catalog, shard, None)
        sources = [*texts.names, *texts.unread]
        if {base_source(one.base, sources) for one in reviews.values()} & set(texts.unread):
            raise _UnreadableError(f"{'; '.join(texts.notes)}. Fix it and run capmix view --fold")
        rows = ((uid, texts.rows.get(uid)) for uid in reviews)
        return {uid: stale_at(reviews[uid], texts, row) for uid, row in rows if row is not None}


class _Known:
    """The samples of a shard with their reviews."""

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
        """Return the annotation table.

        Untouched samples have a decision and a list of tags too, since conditions on null are never
        true.
        """
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
        """Return one value per sample of the shard.

        `values` has one per reviewed sample and, last, the value of all other ok samples. Samples
        that are not ok get null.
        """
        return pa.array(values, kind).take(self.places)


def _outcome(review: Review, is_stale: bool) -> str:
    """Return OK, or the reason why the sample has no text."""
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
