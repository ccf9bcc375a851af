"""Recompute some samples of a part and keep all its other rows unchanged."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from capmix.pool import Shard
from capmix.storage.marker import Counts
from capmix.storage.rows import FAILED
from capmix.storage.store import Store

# Failures of a whole file: a retry may succeed, and the samples of the file are not known yet.
OF_FILES = ("unreadable_shard", "unreadable_file", "truncated_shard", "not_a_tar")
# Failures caused by the content: the same bytes fail in the same way again.
LASTING = (
    "bad_json", "bad_row", "bad_uid", "broken_image", "dotted_key", "duplicate_key",
    "duplicate_uid", "image_gone", "no_image", "no_json", "not_an_image", "too_many_bytes",
    "too_many_pixels", "two_images", "changed_sample",
)  # fmt: skip


def may_pass(reasons: Iterable[str]) -> bool:
    """Return whether a retry can fix any of the failures with these reasons."""
    return any(reason not in LASTING for reason in reasons)


@dataclass(frozen=True)
class Redo:
    """Part in which the samples with `keys` are recomputed and all others are kept.

    `table` is the whole existing part; rows with these keys mark the positions of their
    replacements. `rows_in` and `counts` cover the kept samples. `kept` holds, by key, what the
    stage can reuse for a sample that it recomputes. `known_bad` holds (key, reason) of samples
    that are broken in the pool: the table already has their rows, and the stage must not count
    them again.
    """

    table: pa.Table
    keys: frozenset[str]
    rows_in: int
    counts: Counts
    kept: Mapping[str, Any] = field(default_factory=dict)
    known_bad: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, store: Store, part: str) -> "Redo | None":
        """Return the Redo of the failed samples of a part.

        None if a file of the shard could not be read, so that the whole shard must be recomputed.
        Samples that are broken in the pool itself are not retried.
        """
        marker = store.read_marker(part)
        assert marker is not None
        table = store.read_table(f"{part}.parquet")
        failed = table.filter(pc.equal(table["status"], FAILED)).select(["uid", "key", "reason"])
        if pc.any(pc.is_in(failed["reason"], pa.array(OF_FILES))).as_py():
            return None
        failed = failed.filter(pc.invert(pc.is_in(failed["reason"], pa.array(LASTING))))
        keys = frozenset(failed.filter(pc.is_valid(failed["uid"]))["key"].to_pylist())
        if keys & set(table.filter(pc.is_null(table["uid"]))["key"].to_pylist()):
            return None  # two samples share a key, and one of them is broken in the pool
        is_made = pc.is_in(table["key"], pa.array(sorted(keys), pa.string()))
        before = Counter(table.filter(is_made)["reason"].to_pylist())
        old = marker.counts
        counts = Counts(old.ok, old.dropped.copy(), old.failed - before)
        return cls(table, keys, marker.rows_in - len(keys), counts)

    def merged(self, new: pa.Table) -> pa.Table:
        """Return the part with the new rows of each sample in place of its old rows.

        Raises OSError if a sample is missing from `new`: the shard could not be fully read.
        """
        places: dict[str, list[int]] = {}
        for number, key in enumerate(new["key"].to_pylist()):
            places.setdefault(key, []).append(len(self.table) + number)
        if places.keys() != self.keys:
            gone = sorted(self.keys - places.keys())
            which = f"sample {gone[0]!r}" if gone else "the whole shard"
            why = [text for text in new["detail"].to_pylist() if text] or ["not found"]
            raise OSError(f"{which} could not be reread: {why[-1]}")
        order: list[int] = []
        uids, keys = self.table["uid"].to_pylist(), self.table["key"].to_pylist()
        for number, (uid, key) in enumerate(zip(uids, keys, strict=True)):
            if uid is None or key not in self.keys:
                order.append(number)
            else:
                order += places.pop(key, [])
        # Parquet renames the fields within lists, so that the schemas can differ.
        old = self.table.select(new.column_names).cast(new.schema)
        return pa.concat_tables([old, new]).take(pa.array(order, pa.int64()))

    def totals(self, rows_in: int, new: Counts) -> tuple[int, Counts]:
        """Return rows in and counts of the merged part, given those of the recomputed samples."""
        counts = Counts(self.counts.ok, self.counts.dropped.copy(), self.counts.failed.copy())
        counts.add(new)
        return self.rows_in + rows_in, counts


class Reuse(Protocol):
    """Policy of a stage for reusing parts with other inputs, or with only some of the samples."""

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Return whether rows that were created with these settings can be kept."""
        ...

    def suffices(self, shard: Shard) -> bool:
        """Return whether the existing part contains all requested samples, even if it differs from
        the part that would be written now."""
        ...

    def redo(self, shard: Shard) -> Redo | None:
        """Return which rows of a shard to keep and to recompute; None to recompute all of them."""
        ...
