"""Make some samples of a part, and leave all its other rows as they are."""

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

# Reasons that speak of a file: it may be read next time, and nothing of it is known yet.
OF_FILES = ("unreadable_shard", "unreadable_file", "truncated_shard", "not_a_tar")
# Reasons that lie in what was read: the same bytes fail the same way.
LASTING = (
    "bad_json", "bad_row", "bad_uid", "broken_image", "dotted_key", "duplicate_key",
    "duplicate_uid", "image_gone", "no_image", "no_json", "not_an_image", "too_many_bytes",
    "too_many_pixels", "two_images", "changed_sample",
)  # fmt: skip


def may_pass(reasons: Iterable[str]) -> bool:
    """Whether another attempt may fix some of what failed for these reasons."""
    return any(reason not in LASTING for reason in reasons)


@dataclass(frozen=True)
class Redo:
    """A part of which the samples with `keys` are made, and the others stay.

    `table` is the whole part, where rows with these keys stand for those that replace them. The
    samples that stay are `rows_in` many, with `counts`. `kept` is what a stage has already of a
    sample that it makes. `known_bad` are (key, reason) of samples that the pool has broken, which
    the table has and the stage need not count again.
    """

    table: pa.Table
    keys: frozenset[str]
    rows_in: int
    counts: Counts
    kept: Mapping[str, Any] = field(default_factory=dict)
    known_bad: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, store: Store, part: str) -> "Redo | None":
        """The failed samples of a part; None where a file could not be read, so that all of the
        shard has to be made again. A sample that the pool itself has broken stays as it is."""
        marker = store.read_marker(part)
        assert marker is not None
        table = store.read_table(f"{part}.parquet")
        failed = table.filter(pc.equal(table["status"], FAILED)).select(["uid", "key", "reason"])
        if pc.any(pc.is_in(failed["reason"], pa.array(OF_FILES))).as_py():
            return None
        failed = failed.filter(pc.invert(pc.is_in(failed["reason"], pa.array(LASTING))))
        keys = frozenset(failed.filter(pc.is_valid(failed["uid"]))["key"].to_pylist())
        if keys & set(table.filter(pc.is_null(table["uid"]))["key"].to_pylist()):
            return None  # two samples have that key, one of which the pool has broken
        is_made = pc.is_in(table["key"], pa.array(sorted(keys), pa.string()))
        before = Counter(table.filter(is_made)["reason"].to_pylist())
        old = marker.counts
        counts = Counts(old.ok, old.dropped.copy(), old.failed - before)
        return cls(table, keys, marker.rows_in - len(keys), counts)

    def merged(self, new: pa.Table) -> pa.Table:
        """The part with the new rows of each sample in the place of its old ones.

        Raises OSError where the shard could not be read to its end.
        """
        places: dict[str, list[int]] = {}
        for number, key in enumerate(new["key"].to_pylist()):
            places.setdefault(key, []).append(len(self.table) + number)
        if places.keys() != self.keys:
            gone = sorted(self.keys - places.keys())
            which = f"sample {gone[0]!r}" if gone else "all of the shard"
            why = [text for text in new["detail"].to_pylist() if text] or ["it is not there"]
            raise OSError(f"{which} could not be read again: {why[-1]}")
        order: list[int] = []
        uids, keys = self.table["uid"].to_pylist(), self.table["key"].to_pylist()
        for number, (uid, key) in enumerate(zip(uids, keys, strict=True)):
            if uid is None or key not in self.keys:
                order.append(number)
            else:
                order += places.pop(key, [])
        # Parquet has names of its own within lists.
        old = self.table.select(new.column_names).cast(new.schema)
        return pa.concat_tables([old, new]).take(pa.array(order, pa.int64()))

    def totals(self, rows_in: int, new: Counts) -> tuple[int, Counts]:
        """Rows in, and counts, of the merged part; `rows_in` and `new` are of the samples made."""
        counts = Counts(self.counts.ok, self.counts.dropped.copy(), self.counts.failed.copy())
        counts.add(new)
        return self.rows_in + rows_in, counts


class Reuse(Protocol):
    """What a stage keeps of parts that were made from other inputs, or of a part of a shard."""

    def keeps(self, config: Mapping[str, Any]) -> bool:
        """Whether rows that were made with these settings can stay."""
        ...

    def suffices(self, shard: Shard) -> bool:
        """Whether a part has all that is asked for, though it is not the one that would be made."""
        ...

    def redo(self, shard: Shard) -> Redo | None:
        """What stays of a shard, and what is to be made; None where all of it is."""
        ...
