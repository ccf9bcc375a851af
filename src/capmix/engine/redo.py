"""Make again the samples of a part that failed, and leave all its other rows as they are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from capmix.storage.marker import Counts, Marker
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
    """The part as it is, and the keys of its samples that are to be made again."""

    table: pa.Table
    marker: Marker
    keys: frozenset[str]

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
        known = set(failed.filter(pc.is_valid(failed["uid"]))["key"].to_pylist())
        if known & set(table.filter(pc.is_null(table["uid"]))["key"].to_pylist()):
            return None  # two samples have that key, one of which the pool has broken
        return cls(table, marker, frozenset(known))

    def merged(self, new: pa.Table) -> pa.Table:
        """The part with the new rows of each sample in the place of its old one.

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
        for number, key in enumerate(self.table["key"].to_pylist()):
            order += places[key] if key in self.keys else [number]
        old = self.table.select(new.column_names).cast(
            new.schema
        )  # parquet has names of its own within lists
        return pa.concat_tables([old, new]).take(pa.array(order, pa.int64()))

    def counts(self, rows_in: int, new: Counts) -> tuple[int, Counts]:
        """Rows in, and counts, of the merged part; `rows_in` and `new` are of the samples made."""
        is_made = pc.is_in(self.table["key"], pa.array(sorted(self.keys), pa.string()))
        before = Counter(self.table.filter(is_made)["reason"].to_pylist())
        old = self.marker.counts
        counts = Counts(old.ok, old.dropped.copy(), old.failed - before)
        counts.add(new)
        return self.marker.rows_in - len(self.keys) + rows_in, counts
