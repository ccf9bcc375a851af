"""The largest groups of near-duplicate images in the report, from `capmix annotate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.image_groups import METHOD
from capmix.errors import UserError
from capmix.mix.parts import check_parts
from capmix.pool import Pool
from capmix.report.examples import data_url, thumbnails
from capmix.report.gather import Found
from capmix.storage.layout import ANNOTATIONS, SAMPLES, annotation_folder
from capmix.storage.names import HASH_GROUPS
from capmix.storage.store import Store

GROUPS, MEMBERS = 8, 6  # displayed
SIDE = 112  # pixels
COLUMNS = ["uid", "key", "group", "count"]


@dataclass(frozen=True)
class DuplicateImage:
    """A member of a group; `source` is a data URL, "" if the image cannot be displayed."""

    shard: str
    key: str
    source: str


@dataclass(frozen=True)
class DuplicateGroup:
    """`count` near duplicates, of which `images` are the first in the pool."""

    count: int
    images: list[DuplicateImage]

    @property
    def more(self) -> int:
        return self.count - len(self.images)


@dataclass(frozen=True)
class NearDuplicates:
    """Near duplicates of an annotation: the number of groups and of images in them, the number of
    images that are left if one of each group is kept, and the `largest` groups.

    `name` is the name of the image annotation.
    """

    name: str
    groups: int
    images: int
    left: int
    largest: list[DuplicateGroup]


def near_duplicates_of(found: Found) -> list[NearDuplicates]:
    """Return the near duplicates of every image annotation that has some.

    An annotation that does not cover the pool, or was computed from other images, is noted instead.
    """
    store, of_pool = found.store, []
    for name in store.folders(ANNOTATIONS):
        folder = annotation_folder(name)
        if _method(store, folder) != METHOD:
            continue
        try:
            check_parts(store, found.pool.shards, {SAMPLES, folder})
            _check_inputs(store, found.pool, folder)
        except UserError as error:
            found.notes.append(f"The near duplicates are left out: {error}")
            continue
        duplicates = _read(store, found.pool, folder, name.removesuffix(HASH_GROUPS))
        if duplicates.groups:
            of_pool.append(duplicates)
    return of_pool


def _method(store: Store, folder: str) -> Any:
    """Return the method of an annotation, from the first of its parts."""
    markers = map(store.read_marker, store.parts(folder))
    return next((marker.config.get("method") for marker in markers if marker is not None), None)


def _check_inputs(store: Store, pool: Pool, folder: str) -> None:
    """Raise UserError if a part was computed from an earlier part of the image annotation."""
    for shard in pool.shards:
        marker = store.read_marker(f"{folder}/{shard.name}")
        inputs = marker.inputs if marker is not None else {"": ""}
        if any(store.fingerprint(name) != known for name, known in inputs.items()):
            raise UserError(f"the images of shard {shard.name} have changed; rerun capmix annotate")


def _read(store: Store, pool: Pool, folder: str, name: str) -> NearDuplicates:
    groups = images = left = 0
    largest: list[tuple[int, str]] = []
    for shard in pool.shards:
        table = _rows(store, folder, shard.name)
        # A group is named after its first sample.
        firsts = table.filter(pc.equal(table["uid"], table["group"]))
        left += len(firsts)
        images += len(table.filter(pc.greater(table["count"], 1)))
        firsts = firsts.filter(pc.greater(firsts["count"], 1))
        groups += len(firsts)
        order = [("count", "descending"), ("uid", "ascending")]
        top = firsts.take(pc.select_k_unstable(firsts, GROUPS, order))
        largest += zip(top["count"].to_pylist(), top["uid"].to_pylist(), strict=True)
        largest = sorted(largest, key=lambda one: (-one[0], one[1]))[:GROUPS]
    members = _members(store, pool, folder, {uid: count for count, uid in largest})
    pictures = thumbnails(pool, [row for rows in members.values() for row in rows], SIDE)
    shown = [
        DuplicateGroup(
            count,
            [
                DuplicateImage(row["shard"], row["key"], _source(pictures, row["uid"]))
                for row in members[uid]
            ],
        )
        for count, uid in largest
    ]
    return NearDuplicates(name, groups, images, left, shown)


def _source(pictures: Mapping[str, bytes], uid: str) -> str:
    return data_url(pictures[uid]) if uid in pictures else ""


def _members(
    store: Store, pool: Pool, folder: str, groups: Mapping[str, int]
) -> dict[str, list[dict[str, str]]]:
    """Return the first MEMBERS samples (shard, key, uid) of each of `groups`, which map the name of
    a group to the number of its samples."""
    found: dict[str, list[dict[str, str]]] = {group: [] for group in groups}
    for shard in pool.shards:
        wanted = [one for one, count in groups.items() if len(found[one]) < min(count, MEMBERS)]
        if not wanted:
            break
        table = _rows(store, folder, shard.name)
        for group in wanted:
            some = table.filter(pc.equal(table["group"], group))
            some = some.slice(0, MEMBERS - len(found[group]))
            found[group] += [
                {"shard": shard.name, "key": key, "uid": uid}
                for key, uid in zip(some["key"].to_pylist(), some["uid"].to_pylist(), strict=True)
            ]
    return found


def _rows(store: Store, folder: str, shard: str) -> pa.Table:
    """Return the rows of a shard that have a group."""
    table = store.read_table(f"{folder}/{shard}.parquet", COLUMNS)
    return table.filter(pc.is_valid(table["group"]))
