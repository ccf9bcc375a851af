"""Texts, scores and flags of several sources side by side, some shards at a time."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column, folders_of, read_samples
from capmix.mix.parts import check_parts, refuse_rewritten
from capmix.settings.base import did_you_mean
from capmix.storage.layout import SAMPLES
from capmix.storage.store import READERS, Store

KINDS = {
    "text": pa.string(),
    "score": pa.float32(),
    "flags": pa.list_(pa.string()),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
}
OF_INDEX = ("text", "width", "height", "bytes")  # of one type, whatever the pool's files have


def table_columns(catalog: Catalog, sources: Sequence[str], scorer: str | None) -> list[str]:
    """S_text and S_score of each source S, and S_flags of captions; scores only where there are
    any.

    Raises UserError where several scorers have scored and `scorer` names none of them.
    """
    known = catalog.columns(catalog.scorer(scorer))
    wanted = [f"{source}_{field}" for source in sources for field in ("text", "score", "flags")]
    return [name for name in wanted if name in known]


def table_batches(
    catalog: Catalog, columns: Sequence[str], scorer: str | None
) -> pa.RecordBatchReader:
    """uid, key, shard and `columns` (any that recipes know) of every sample that is ok, in pool
    order; a record batch per shard. Captions are the first of each sample (S_k1_text: the second).

    A column of a metadata pool has the type that holds its values of all shards, such as double
    for int64 and double. Raises UserError for an unknown column, for one whose types have nothing
    in common, and, while reading, for parts that are missing or stale.
    """
    known = catalog.columns(scorer)
    for name in columns:
        if name not in known:
            raise UserError(f"no column {name!r}{did_you_mean(name, known)}")
    chosen = {name: known[name] for name in columns}
    kinds = {name: _kind(catalog, column) for name, column in chosen.items()}
    kinds |= _common_kinds(catalog, {n: c for n, c in chosen.items() if _is_of_pool(catalog, c)})
    schema = pa.schema(
        [("uid", pa.string()), ("key", pa.string()), ("shard", pa.string()), *kinds.items()]
    )
    return pa.RecordBatchReader.from_batches(schema, _read(catalog, chosen, schema))


def _read(
    catalog: Catalog, columns: dict[str, Column], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    parts = check_parts(catalog.store, catalog.pool, folders_of(columns.values()))
    for shard in catalog.pool.shards:
        table = read_samples(catalog.store, shard.name, columns, parts)
        table = table.append_column("shard", pa.repeat(pa.scalar(shard.name), len(table)))
        arrays = [_cast(table[field.name], field, shard.name) for field in schema]
        yield from pa.table(arrays, schema=schema).combine_chunks().to_batches()
    refuse_rewritten(catalog.store, parts)


def _cast(values: pa.ChunkedArray, field: pa.Field, shard: str) -> pa.ChunkedArray:
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"column {field.name!r}, shard {shard}: {line}. Use one type in all files of the pool"
        ) from error


def _kind(catalog: Catalog, column: Column) -> pa.DataType:
    """The Arrow type of a column, as the first part that has it says."""
    for shard in catalog.pool.shards:
        kind = _kinds(catalog.store, f"{column.folder}/{shard.name}").get(column.field)
        if kind is not None:
            return kind
    return KINDS.get(column.field, pa.null())


def _is_of_pool(catalog: Catalog, column: Column) -> bool:
    """Whether the column is one of a pool of metadata: each file may have it in another type."""
    return column.folder == SAMPLES and column.field not in OF_INDEX and not catalog.pool.has_images


def _common_kinds(catalog: Catalog, columns: Mapping[str, Column]) -> dict[str, pa.DataType]:
    """The type of each column of the index that holds its values of all shards.

    Raises UserError that names the shard whose type fits none of the shards before it.
    """
    found: dict[str, pa.DataType] = {}
    if not columns:
        return found
    store, names = catalog.store, [shard.name for shard in catalog.pool.shards]
    with store.listed([SAMPLES]), ThreadPoolExecutor(READERS) as threads:
        each = threads.map(lambda name: _kinds(store, f"{SAMPLES}/{name}"), names)
        for shard, kinds in zip(names, each, strict=True):
            for name, column in columns.items():
                if column.field in kinds:
                    kind = kinds[column.field]
                    found[name] = _common(found.get(name, kind), kind, name, shard)
    return found


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


def _kinds(store: Store, part: str) -> dict[str, pa.DataType]:
    """The Arrow types of a part's columns; none where it is not finished."""
    if store.read_marker(part) is None:
        return {}
    with store.open_table(f"{part}.parquet") as file:
        return {
            field.name: pa.string() if pa.types.is_dictionary(field.type) else field.type
            for field in file.schema_arrow
        }
