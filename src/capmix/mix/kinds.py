"""Types of the pool's own columns, which can differ between files and shards."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.columns import Column
from capmix.models.fields import ARROW, VARCHAR, as_type, common_type, types_of
from capmix.pool import Pool
from capmix.storage.layout import FIELDS, SAMPLES
from capmix.storage.marker import Marker
from capmix.storage.store import READERS, Store

OF_INDEX = ("text", "width", "height", "bytes")  # the index has one type for each of these

MAX_NAMES = 1000  # of fields: a pool's JSON may use other names in every sample


def common_kinds(store: Store, pool: Pool, columns: Mapping[str, Column]) -> dict[str, pa.DataType]:
    """Return the common type, over all shards, of each column of a metadata pool and each field of
    the samples' JSON.

    Columns of other parts are left out. Raises UserError, with the name of the shard, if a shard's
    type has no common type with those of the shards before it.
    """
    fields = {name: c.field for name, c in columns.items() if c.folder == FIELDS}
    known = field_types(store, pool) if fields else {}
    found = {name: ARROW[known.get(one, VARCHAR)] for name, one in fields.items()}
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


def field_types(store: Store, pool: Pool) -> dict[str, str]:
    """Return the SQL type of every field of the samples' JSON in the shards whose fields are
    indexed."""
    parts = [f"{FIELDS}/{shard.name}" for shard in pool.shards]
    with store.listed([FIELDS]), ThreadPoolExecutor(READERS) as threads:
        return common_types(threads.map(store.read_marker, parts))


def common_types(markers: Iterable[Marker | None]) -> dict[str, str]:
    """Return the common type of each field over these parts (see fields.common_type), for the first
    MAX_NAMES names."""
    found: dict[str, str] = {}
    for marker in markers:
        for name, type_ in types_of(marker).items():
            if name in found or len(found) < MAX_NAMES:
                found[name] = common_type(found.get(name, type_), type_)
    return found


def cast_to(
    values: pa.ChunkedArray, kind: pa.DataType, column: str, shard: str, is_field: bool = False
) -> pa.ChunkedArray:
    """Cast the values to `kind`; in a field of the samples' JSON, which capmix did not write, large
    integers may be rounded. Raises UserError, with column and shard, if a value cannot be cast."""
    try:
        if is_field and pa.types.is_floating(values.type) and pa.types.is_string(kind):
            texts = [as_type(value, VARCHAR) for value in values.to_pylist()]
            return pa.chunked_array([pa.array(texts, pa.string())])
        return values.cast(kind, safe=not (is_field and pa.types.is_floating(kind)))
    except pa.ArrowException as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"column {column!r}, shard {shard}: {line}. Use one type in all files of the pool"
        ) from error


def kinds_of(store: Store, part: str) -> dict[str, pa.DataType]:
    """Return the Arrow types that a part's columns are read as; empty if the part is unfinished."""
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
            f"column {column!r}: shard {shard} has type {kind}, earlier shards have {before}. Use "
            "one type in all files of the pool"
        ) from error
