"""The types of a metadata pool's own columns: each file may have a column in another one."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.columns import Column
from capmix.pool import Pool
from capmix.storage.layout import SAMPLES
from capmix.storage.store import READERS, Store

OF_INDEX = ("text", "width", "height", "bytes")  # of one type, whatever the pool's files have


def common_kinds(store: Store, pool: Pool, columns: Mapping[str, Column]) -> dict[str, pa.DataType]:
    """The type of each column of a metadata pool that holds its values of all shards.

    Columns of other parts are left out. Raises UserError that names the shard whose type fits none
    of the shards before it.
    """
    found: dict[str, pa.DataType] = {}
    own = {
        name: c for name, c in columns.items() if c.folder == SAMPLES and c.field not in OF_INDEX
    }
    if not own or pool.has_images:
        return found
    names = [shard.name for shard in pool.shards]
    with store.listed([SAMPLES]), ThreadPoolExecutor(READERS) as threads:
        each = threads.map(lambda name: kinds_of(store, f"{SAMPLES}/{name}"), names)
        for shard, kinds in zip(names, each, strict=True):
            for name, column in own.items():
                if column.field in kinds:
                    kind = kinds[column.field]
                    found[name] = _common(found.get(name, kind), kind, name, shard)
    return found


def cast_to(values: pa.ChunkedArray, kind: pa.DataType, column: str, shard: str) -> pa.ChunkedArray:
    """The values as `kind`. Raises UserError that names column and shard where it cannot hold
    one."""
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"column {column!r}, shard {shard}: {line}. Use one type in all files of the pool"
        ) from error


def kinds_of(store: Store, part: str) -> dict[str, pa.DataType]:
    """The Arrow types of a part's columns as they are used; none where it is not finished."""
    if store.read_marker(part) is None:
        return {}
    with store.open_table(f"{part}.parquet") as file:
        return {field.name: _used(field.type) for field in file.schema_arrow}


def _used(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _common(before: pa.DataType, kind: pa.DataType, column: str, shard: str) -> pa.DataType:
    if before == kind:
        return kind
    schemas = [pa.schema([(column, one)]) for one in (before, kind)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException as error:
        raise UserError(
            f"column {column!r}: shard {shard} has {kind}, the shards before it {before}. Use one "
            "type in all files of the pool"
        ) from error
