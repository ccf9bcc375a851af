"""Where the samples of reviews are now.

A line of the journal names a sample by shard and uid. In a folder of files both change with what
else is in it: a shard is the next thousand files by name, and a uid may be that of a file's path.
So a sample that is not in the shard of its line is looked up in the index of the pool: by uid, and
where uids are those of paths, by its image. What is found nowhere stays in the journal, and is
found again when the file is there again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.columns import one_array
from capmix.pool import Pool
from capmix.pool.sample import uid_from_path
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import OK
from capmix.storage.store import Store
from capmix.view.journal import Named, Place


@dataclass(frozen=True)
class Settled:
    """Places that lines name, by where their samples are now; `lost` are those of no sample."""

    moved: Mapping[Place, Place] = field(default_factory=dict)
    lost: frozenset[Place] = frozenset()


def find_places(store: Store, pool: Pool, named: Mapping[Place, Named]) -> Settled:
    """Look for the samples that lines of a journal name, in the shards that are indexed.

    Where several samples of one uid or image may be meant, or a sample has reviews of its own that
    were not made on top of the other's, none is chosen: the review is lost.
    """
    homeless = {place: named[place] for place in _homeless(store, pool, named)}
    if not homeless:
        return Settled()
    by_uid, by_image = _found(store, pool, homeless)
    wanted: dict[Place, list[Place]] = defaultdict(list)
    lost = set()
    for place, about in homeless.items():
        found = by_uid.get(place[1]) or by_image.get(about.image, [])
        if len(found) == 1:
            wanted[found[0]].append(place)
        else:
            lost.add(place)
    moved: dict[Place, Place] = {}
    for target, places in wanted.items():
        same = pool.is_folder and all(uid == target[1] for _, uid in places)
        of_their_own = [one for one in {*places, target} if one in named and named[one].is_first]
        if same or len(of_their_own) < 2:
            moved |= dict.fromkeys(places, target)
        else:
            lost |= set(places)
    return Settled(moved, frozenset(lost))


def _homeless(store: Store, pool: Pool, named: Mapping[Place, Named]) -> Iterator[Place]:
    """Those that are not in their shard; of shards that are not indexed yet, nobody knows."""
    uids: dict[str, list[str]] = defaultdict(list)
    for shard, uid in named:
        uids[shard].append(uid)
    shards = {shard.name for shard in pool.shards}
    for shard, wanted in uids.items():
        if shard not in shards:
            yield from ((shard, uid) for uid in wanted)
        elif store.read_marker(f"{SAMPLES}/{shard}") is not None:
            table = _index(store, shard, ["uid"])
            if table is None:
                continue
            known = pc.is_in(pa.array(wanted), value_set=one_array(table["uid"])).to_pylist()
            yield from ((shard, uid) for uid, is_in in zip(wanted, known, strict=True) if not is_in)


def _found(
    store: Store, pool: Pool, homeless: Mapping[Place, Named]
) -> tuple[dict[str, list[Place]], dict[str, list[Place]]]:
    """The samples of the pool that have a uid or, in a folder, an image of these."""
    uids = pa.array(sorted({uid for _, uid in homeless}))
    images = {one.image for one in homeless.values() if one.image} if pool.is_folder else set()
    by_uid: dict[str, list[Place]] = defaultdict(list)
    by_image: dict[str, list[Place]] = defaultdict(list)
    for shard in pool.shards:
        if store.read_marker(f"{SAMPLES}/{shard.name}") is None:
            continue
        table = _index(store, shard.name, ["uid"])
        if table is None:
            continue
        known = table["uid"]
        for uid in known.filter(pc.is_in(known, value_set=uids)).to_pylist():
            by_uid[uid].append((shard.name, uid))
        for image, uid in _images(store, shard.name) if images else ():
            if image in images:
                by_image[image].append((shard.name, uid))
    return by_uid, by_image


def _images(store: Store, shard: str) -> Iterator[tuple[str, str]]:
    """What identifies the bytes of each sample whose uid is that of its path, and the uid."""
    with store.open_table(f"{SAMPLES}/{shard}.parquet") as file:
        have = file.schema_arrow.names
    names = [name for name in ("xxh3", "sha256") if name in have]
    table = _index(store, shard, ["uid", "key", *names])
    for row in table.to_pylist() if table is not None else ():
        value = next((row[name] for name in names if row[name] is not None), None)
        if value is not None and row["uid"] == uid_from_path(row["key"]):
            yield image_name(value), row["uid"]


def image_name(value: int | str) -> str:
    """What identifies a sample's bytes, as reviews keep it: xxh3 or sha256 of the index."""
    return f"{value:016x}" if isinstance(value, int) else value


def _index(store: Store, shard: str, columns: list[str]) -> pa.Table | None:
    """Columns of the samples of a shard that are ok; None where they cannot be read, which is
    reported when the shard is looked at."""
    try:
        table = store.read_table(f"{SAMPLES}/{shard}.parquet", [*columns, "status"])
    except UserError:
        return None
    return table.filter(pc.equal(table["status"], OK))
