"""Groups of near-duplicate images: an annotation computed from the hashes of all shards.

It is stored beside the annotation of the images, as NAME_phash: in recipes, its columns are
NAME_phash_group, the uid of the group's first sample in the pool, and NAME_phash_count, the number
of its samples.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.annotate.hash_groups import hash_groups
from capmix.annotate.vectors import columns_done, fingerprints
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.draft import MadeMeanwhileError
from capmix.storage.layout import annotation_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.names import HASH_GROUPS
from capmix.storage.rows import OK, STATUS, column_names
from capmix.storage.store import Store

log = logging.getLogger(__name__)
METHOD = "image groups"  # in the settings of the groups; the images have "image"
FIELDS = [("group", pa.string()), ("count", pa.int32())]


def groups_name(name: str) -> str:
    """Return the name of the annotation with the groups of an image annotation."""
    return f"{name}{HASH_GROUPS}"


def annotate_groups(store: Store, shards: Sequence[Shard], name: str, distance: int) -> Counts:
    """Group the samples of the image annotation `name` whose hashes differ in few bits.

    `distance` is the most bits in which the hashes of direct neighbours differ. Memory: about 60
    bytes per image.
    """
    own, folder = groups_name(name), annotation_folder(name)
    config: dict[str, object] = {"method": METHOD, "distance": distance}
    config["made_of"] = _made_of(store, shards, folder)
    done = columns_done(store, shards, own, folder, config)
    if done is not None:
        log.info("annotate %s: groups of %s images already done", name, f"{done.ok:,}")
        return done
    hashes, sizes = _hashes(store, shards, folder)
    groups = hash_groups(hashes, distance)
    members = np.bincount(groups, minlength=len(groups))
    if _made_of(store, shards, folder) != config["made_of"]:
        raise UserError(
            f"annotate {name}: its hashes were overwritten during the run; rerun the command"
        )
    counts = _write(store, shards, name, _Groups(groups, members, sizes), config)
    several = members[members > 1]
    log.info(
        "annotate %s: %s groups of near duplicates, with %s of %s images",
        *(name, f"{len(several):,}", f"{int(several.sum()):,}", f"{len(groups):,}"),
    )
    return counts


def _made_of(store: Store, shards: Sequence[Shard], folder: str) -> str:
    """Return a digest (32 hex digits) of all parts with hashes: each group depends on all."""
    found = "".join(fingerprints(store, [folder], shards))
    return hashlib.sha256(found.encode()).hexdigest()[:32]


def _hashes(store: Store, shards: Sequence[Shard], folder: str) -> tuple[np.ndarray, list[int]]:
    """Return the hashes of all ok rows, uint64 (N,), and their number in each shard."""
    found = []
    for shard in shards:
        table = store.read_table(f"{folder}/{shard.name}.parquet", ["status", "phash"])
        digits = _ok(table)["phash"].to_pylist()
        found.append(np.array([int(one, 16) for one in digits], np.uint64))
    return np.concatenate(found), [len(one) for one in found]


class _Groups(NamedTuple):
    """The group of each ok row, the number of members by group, and the ok rows by shard."""

    of_row: np.ndarray
    members: np.ndarray
    sizes: list[int]


def _first_uids(
    store: Store, shards: Sequence[Shard], folder: str, groups: _Groups
) -> dict[int, str]:
    """Return the uid of the first row of each group with several rows."""
    several = np.flatnonzero(groups.members > 1)
    ends = np.cumsum(groups.sizes)
    found: dict[int, str] = {}
    for shard, size, end in zip(shards, groups.sizes, ends.tolist(), strict=True):
        here = several[np.searchsorted(several, end - size) : np.searchsorted(several, end)]
        if len(here):
            uids = _ok(store.read_table(f"{folder}/{shard.name}.parquet", ["uid", "status"]))["uid"]
            some = uids.take(pa.array(here - (end - size))).to_pylist()
            found |= dict(zip(here.tolist(), some, strict=True))
    return found


def _write(
    store: Store,
    shards: Sequence[Shard],
    name: str,
    groups: _Groups,
    config: Mapping[str, object],
) -> Counts:
    inputs, folder = annotation_folder(name), annotation_folder(groups_name(name))
    first = _first_uids(store, shards, inputs, groups)
    # Marks the parts of one run: see mix/parts.py.
    config = {**config, "values": hashlib.sha256(groups.of_row.tobytes()).hexdigest()[:32]}
    total, start = Counts(), 0
    for shard, size in zip(shards, groups.sizes, strict=True):
        table = store.read_table(f"{inputs}/{shard.name}.parquet", STATUS)
        is_ok = pc.equal(table["status"], OK).to_numpy()
        own = groups.of_row[start : start + size]
        uids = _ok(table)["uid"].to_pylist()
        names = np.full(len(table), None, object)
        names[is_ok] = [
            first.get(group, uid) for group, uid in zip(own.tolist(), uids, strict=True)
        ]
        numbers = np.zeros(len(table), np.int32)
        numbers[is_ok] = groups.members[own]
        table = table.append_column("group", pa.array(names.tolist(), pa.string()))
        table = table.append_column("count", pa.array(numbers, pa.int32(), mask=~is_ok))
        counts = Counts(size, failed=Counter(table.filter(~is_ok)["reason"].to_pylist()))
        source = f"{inputs}/{shard.name}"
        with store.draft(f"{folder}/{shard.name}") as draft:
            draft.write_table(f"{draft.part}.parquet", table)
            made_from = {source: store.fingerprint(source)}
            columns = column_names(FIELDS)
            marker = Marker(made_from, dict(config), len(table), counts, columns=columns)
            with suppress(MadeMeanwhileError):
                draft.commit(marker)
        total.add(counts)
        start += size
    return total


def _ok(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], OK))
