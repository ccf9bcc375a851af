"""Texts, scores and flags of several sources side by side, some shards at a time."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column, folders_of, read_samples
from capmix.mix.parts import check_parts
from capmix.settings.base import did_you_mean

KINDS = {
    "text": pa.string(),
    "score": pa.float32(),
    "flags": pa.list_(pa.string()),
}


def table_columns(catalog: Catalog, sources: Sequence[str], scorer: str | None) -> list[str]:
    """S_text and S_score of each source S, and S_flags of captions; scores only where there are
    any."""
    known = catalog.columns(scorer)
    wanted = [f"{source}_{field}" for source in sources for field in ("text", "score", "flags")]
    return [name for name in wanted if name in known]


def table_batches(
    catalog: Catalog, columns: Sequence[str], scorer: str | None
) -> pa.RecordBatchReader:
    """uid, key, shard and `columns` (any that recipes know) of every sample that is ok, in pool
    order; a record batch per shard. Captions are the first of each sample (S_k1_text: the second).

    Raises UserError for an unknown column, and, while reading, for parts that are missing or stale.
    """
    known = catalog.columns(scorer)
    for name in columns:
        if name not in known:
            raise UserError(f"no column {name!r}{did_you_mean(name, known)}")
    chosen = {name: known[name] for name in columns}
    schema = pa.schema(
        [("uid", pa.string()), ("key", pa.string()), ("shard", pa.string())]
        + [(name, _kind(catalog, column)) for name, column in chosen.items()]
    )
    return pa.RecordBatchReader.from_batches(schema, _read(catalog, chosen, schema))


def _read(
    catalog: Catalog, columns: dict[str, Column], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    parts = check_parts(catalog.store, catalog.pool, folders_of(columns.values()))
    for shard in catalog.pool.shards:
        table = read_samples(catalog.store, shard.name, columns, parts)
        table = table.append_column("shard", pa.repeat(pa.scalar(shard.name), len(table)))
        yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()


def _kind(catalog: Catalog, column: Column) -> pa.DataType:
    """The Arrow type of a column, as the first part that has it says."""
    for shard in catalog.pool.shards:
        part = f"{column.folder}/{shard.name}"
        if catalog.store.read_marker(part) is not None:
            with catalog.store.open_table(f"{part}.parquet") as file:
                fields = file.schema_arrow
                if column.field in fields.names:
                    kind = fields.field(column.field).type
                    return pa.string() if pa.types.is_dictionary(kind) else kind
    return KINDS.get(column.field, pa.null())
