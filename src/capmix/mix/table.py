"""Tables of the texts, scores and flags of several sources, read shard by shard."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.advice import about_scores
from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column, folders_of, read_samples
from capmix.mix.kinds import cast_to, common_kinds, kinds_of
from capmix.mix.parts import check_parts, refuse_rewritten
from capmix.settings.base import did_you_mean
from capmix.storage.layout import FIELDS

KINDS = {
    "text": pa.string(),
    "score": pa.float32(),
    "flags": pa.list_(pa.string()),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
}


def table_columns(catalog: Catalog, sources: Sequence[str], scorer: str | None) -> list[str]:
    """Return the names S_text, S_score and S_flags for each source S, without those of columns that
    do not exist.

    Raises UserError if there are several scorers and `scorer` selects none of them.
    """
    known = catalog.columns(catalog.scorer(scorer))
    wanted = [f"{source}_{field}" for source in sources for field in ("text", "score", "flags")]
    return [name for name in wanted if name in known]


def table_batches(
    catalog: Catalog, columns: Sequence[str], scorer: str | None
) -> pa.RecordBatchReader:
    """Read uid, key, shard and `columns` of every sample that is ok, in pool order.

    `columns` are any columns of recipes; S_text is the first caption of each sample, S_k1_text the
    second. There is one record batch per shard. A column of a metadata pool has the common type of
    all shards, for example double for int64 and double. Raises UserError for an unknown column, for
    one without a common type, and, while reading, if parts are missing or stale.
    """
    known = catalog.columns(scorer, columns)
    if lacking := about_scores(columns, known):
        raise UserError(lacking)
    for name in columns:
        if name not in known:
            raise UserError(f"no column {name!r}{did_you_mean(name, known)}")
    chosen = {name: known[name] for name in columns}
    kinds = {name: _kind(catalog, column) for name, column in chosen.items()}
    kinds |= common_kinds(catalog.store, catalog.pool, chosen)
    schema = pa.schema(
        [("uid", pa.string()), ("key", pa.string()), ("shard", pa.string()), *kinds.items()]
    )
    return pa.RecordBatchReader.from_batches(schema, _read(catalog, chosen, schema))


def _read(
    catalog: Catalog, columns: dict[str, Column], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    parts = check_parts(catalog.store, catalog.pool.shards, folders_of(columns.values()))
    fields = {name for name, column in columns.items() if column.folder == FIELDS}
    for shard in catalog.pool.shards:
        table = read_samples(catalog.store, shard.name, columns, parts)
        table = table.append_column("shard", pa.repeat(pa.scalar(shard.name), len(table)))
        arrays = [
            cast_to(table[f.name], f.type, f.name, shard.name, f.name in fields) for f in schema
        ]
        yield from pa.table(arrays, schema=schema).combine_chunks().to_batches()
    refuse_rewritten(catalog.store, parts)


def _kind(catalog: Catalog, column: Column) -> pa.DataType:
    """Return the Arrow type of a column in the first part that has the column."""
    for shard in catalog.pool.shards:
        kind = kinds_of(catalog.store, f"{column.folder}/{shard.name}").get(column.field)
        if kind is not None:
            return kind
    return KINDS.get(column.field, pa.null())
