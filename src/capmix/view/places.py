"""Find the current places of reviewed samples.

A journal line identifies a sample by shard and uid. In a folder of image files both can change when
files are added, removed or renamed: a shard is a run of a thousand files by name, and a uid can be
derived from a file's path. A sample that is not in the shard of its line is therefore looked up in
the pool's index: by uid, and by its image if uids are derived from paths. Reviews of samples that
are not found remain in the journal, and apply again once the file is back.
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
    """`moved` maps places in the journal to their samples' current places; `lost` are places
    without a sample."""

    moved: Mapping[Place, Place] = field(default_factory=dict)
    lost: frozenset[Place] = frozenset()


def find_places(store: Store, pool: Pool, named: Mapping[Place, Named]) -> Settled:
    """Find the samples that journal lines refer to, in the indexed shards.

    The review is lost if several samples have the uid or image, or if the sample found has a review
    of its own that does not continue the other one.
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
    """Yield the places whose shard does not have the sample; skips shards not indexed yet."""
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
    """Find the pool's samples with these uids or, in a folder, these images."""
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
    """Yield the image name and uid of each sample whose uid is derived from its path."""
    with store.open_table(f"{SAMPLES}/{shard}.parquet") as file:
        have = file.schema_arrow.names
    names = [name for name in ("xxh3", "sha256") if name in have]
    table = _index(store, shard, ["uid", "key", *names])
    for row in table.to_pylist() if table is not None else ():
        value = next((row[name] for name in names if row[name] is not None), None)
        if value is not None and row["uid"] == uid_from_path(row["key"]):
            yield image_name(value), row["uid"]


def image_name(value: int | str) -> str:
    """Return the name of a sample's image bytes in reviews: the index's xxh3 (in hex) or sha256."""
    return f"{value:016x}" if isinstance(value, int) else value


def _index(store: Store, shard: str, columns: list[str]) -> pa.Table | None:
    """Read columns of a shard's ok samples.

    Returns None if they cannot be read; this is reported when the shard is displayed.
    """
    try:
        table = store.read_table(f"{SAMPLES}/{shard}.parquet", [*columns, "status"])
    except UserError:
        return None
    return table.filter(pc.equal(table["status"], OK))
