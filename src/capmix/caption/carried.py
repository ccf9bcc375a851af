"""Captions of images that may have moved to another shard: kept until all shards are made again.

The images of a folder are divided into shards in the order of their names, so that one file more
moves those behind it. What the parts to be overwritten hold is copied before the first of them is,
and removed when the last one is there: a run that is killed between the two finds it.
"""

import contextlib
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from capmix.caption.fields import FIELDS
from capmix.errors import UserError
from capmix.pool import Pool
from capmix.storage.layout import CARRIED, captions_folder
from capmix.storage.rows import STATUS_FIELDS
from capmix.storage.store import Store

CONFIG = "config"
SCHEMA = pa.schema([*STATUS_FIELDS, *FIELDS, (CONFIG, pa.string())])


@contextlib.contextmanager
def carried(store: Store, pool: Pool, source: str) -> Iterator[None]:
    """Within the block, which captions `source`, what moved is kept; after it, if nothing was
    raised, it is removed. Does nothing for pools whose samples do not move."""
    is_kept = keep_moved(store, pool, source)
    yield
    if is_kept:
        store.remove(_file(source))


def keep_moved(store: Store, pool: Pool, source: str) -> bool:
    """Copy the captions of parts that would be overwritten; returns whether there are any."""
    if not pool.is_folder:
        return False
    name = _file(source)
    tables = [*_earlier(store, name), *_stale(store, pool, source)]
    if tables:
        store.write_table(name, pa.concat_tables(tables))
    return bool(tables)


def read_carried(store: Store, source: str) -> Iterator[tuple[str, pa.Table]]:
    """The settings, as JSON, and the captions of each kind that are kept."""
    for table in _earlier(store, _file(source)):
        for config in pc.unique(table[CONFIG]).to_pylist():
            yield config, table.filter(pc.equal(table[CONFIG], config))


def _file(source: str) -> str:
    return f"{CARRIED}/{source}.parquet"


def _earlier(store: Store, name: str) -> Iterator[pa.Table]:
    """What is kept now; nothing where that is damaged: the images are captioned again."""
    with contextlib.suppress(OSError, pa.ArrowException, UserError):
        table = store.read_table(name)
        if table.schema.equals(SCHEMA):
            yield table


def _stale(store: Store, pool: Pool, source: str) -> Iterator[pa.Table]:
    """The captions of each part that is not of a shard as it is now."""
    now = {f"{captions_folder(source)}/{shard.name}": shard.fingerprint for shard in pool.shards}
    with store.listed([captions_folder(source)]):
        for part in store.parts(captions_folder(source)):
            marker = store.read_marker(part)
            if marker is None or marker.inputs.get("pool") == now.get(part):
                continue
            if store.is_gone(part, marker):
                continue
            with contextlib.suppress(UserError, pa.ArrowException):  # damaged: made again
                table = store.read_table(f"{part}.parquet")
                if "image_hash" not in table.column_names or "pool" not in marker.inputs:
                    continue
                settings = json.dumps(marker.config, sort_keys=True)
                config = pa.repeat(pa.scalar(settings, pa.string()), len(table))
                yield table.append_column(CONFIG, config).select(SCHEMA.names).cast(SCHEMA)
