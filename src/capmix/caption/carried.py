"""Keep captions of images that may have moved to another shard until all shards are up to date.

The images of a folder are divided into shards in the order of their names, so adding one file
moves the files after it. Before the first outdated part is overwritten, its captions and those of
all other outdated parts are copied; the copy is removed when every part is up to date. A run that
was killed in between finds the copy when it resumes.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.caption.fields import FIELDS
from capmix.errors import UserError
from capmix.pool import Pool
from capmix.storage.json_text import parse_object
from capmix.storage.layout import CARRIED, captions_folder
from capmix.storage.marker import Marker
from capmix.storage.rows import STATUS_FIELDS
from capmix.storage.store import Store

CONFIG = "config"
SCHEMA = pa.schema([*STATUS_FIELDS, *FIELDS, (CONFIG, pa.string())])


@contextlib.contextmanager
def carried(store: Store, pool: Pool, source: str) -> Iterator[None]:
    """Keep captions of `source` that may have moved while the block captions that source.

    Removes the copy after the block if the block did not raise and no part of the pool is out of
    date. Does nothing for pools whose samples do not move between shards.
    """
    is_kept = keep_moved(store, pool, source)
    yield
    now = {f"{captions_folder(source)}/{shard.name}" for shard in pool.shards}
    if is_kept and not any(part in now for part, _ in _stale_parts(store, pool, source)):
        store.remove(_file(source))


@contextlib.contextmanager
def tried(store: Store, pool: Pool, source: str) -> Iterator[None]:
    """Like `carried`, for planning a run: removes the copy afterwards if the block created it."""
    is_new = not store.exists(_file(source))
    is_kept = keep_moved(store, pool, source)
    try:
        yield
    finally:
        if is_new and is_kept:
            store.remove(_file(source))


def keep_moved(store: Store, pool: Pool, source: str) -> bool:
    """Add the captions of parts that would be overwritten to the copy; return whether it has any.

    Returns False for pools whose samples do not move between shards.
    """
    if not pool.is_folder:
        return False
    name = _file(source)
    tables = [*_earlier(store, name), *_stale(store, pool, source)]
    if tables:
        store.write_table(name, _deduplicated(pa.concat_tables(tables)))
    return bool(tables)


class CarriedCaptions:
    """The kept captions of a source, looked up by image hash.

    Uses one integer per caption in addition to the table. Empty if the file is damaged or missing.
    """

    def __init__(self, store: Store, source: str):
        tables = list(_earlier(store, _file(source)))
        table = tables[0] if tables else SCHEMA.empty_table()
        table = table.filter(pc.is_valid(table["image_hash"]))
        hashes = table["image_hash"].to_numpy()
        self._order = np.argsort(hashes, kind="stable")
        self._hashes, self._table = hashes[self._order], table

    def __len__(self) -> int:
        return len(self._hashes)

    def of(self, images: Iterable[int]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """Yield the captions of these images grouped by settings: (settings, table) pairs."""
        wanted = np.unique(np.fromiter(images, np.uint64))
        starts = np.searchsorted(self._hashes, wanted, "left")
        ends = np.searchsorted(self._hashes, wanted, "right")
        spans = [self._order[a:b] for a, b in zip(starts, ends, strict=True) if b > a]
        if not spans:
            return
        table = self._table.take(pa.array(np.sort(np.concatenate(spans))))
        for config in pc.unique(table[CONFIG]).to_pylist():
            with contextlib.suppress(ValueError):
                settings = parse_object((config or "").encode())
                yield settings, table.filter(pc.equal(table[CONFIG], config))


def _file(source: str) -> str:
    return f"{CARRIED}/{source}.parquet"


def _earlier(store: Store, name: str) -> Iterator[pa.Table]:
    """Yield the kept captions. A damaged file yields nothing: its images are recaptioned."""
    with contextlib.suppress(OSError, pa.ArrowException, UserError):
        table = store.read_table(name)
        if table.schema.equals(SCHEMA):
            yield table


def _deduplicated(table: pa.Table) -> pa.Table:
    """Keep the newest of equal rows: an earlier run may have copied the same captions."""
    keys = [CONFIG, "uid", "key", "k", "image_hash"]
    numbered = table.select(keys).append_column("row", pa.array(np.arange(len(table))))
    last = numbered.group_by(keys, use_threads=False).aggregate([("row", "max")])["row_max"]
    return table.take(pa.array(np.sort(last.to_numpy())))


def _stale_parts(store: Store, pool: Pool, source: str) -> list[tuple[str, Marker]]:
    """Return the parts that do not match a current shard."""
    folder = captions_folder(source)
    now = {f"{folder}/{shard.name}": shard.fingerprint for shard in pool.shards}
    found = []
    with store.listed([folder]):
        for part in store.parts(folder):
            marker = store.read_marker(part)
            if marker is None or marker.inputs.get("pool") == now.get(part):
                continue
            found.append((part, marker))
    return found


def _stale(store: Store, pool: Pool, source: str) -> Iterator[pa.Table]:
    """Yield the captions of outdated parts."""
    for part, marker in _stale_parts(store, pool, source):
        with contextlib.suppress(
            UserError, pa.ArrowException, OSError
        ):  # damaged: its images are recaptioned
            table = store.read_table(f"{part}.parquet")
            if "image_hash" not in table.column_names or "pool" not in marker.inputs:
                continue
            settings = json.dumps(marker.config, sort_keys=True)
            config = pa.repeat(pa.scalar(settings, pa.string()), len(table))
            yield table.append_column(CONFIG, config).select(SCHEMA.names).cast(SCHEMA)
