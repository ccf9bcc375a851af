"""All samples of a pool in one DuckDB table, for measures and reports of pools that fit memory."""

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from capmix.mix.columns import Column, read_samples
from capmix.mix.inputs import check_parts
from capmix.mix.plan import DRAW, locked_connection
from capmix.pool import Pool
from capmix.store import Store


def sample_table(
    store: Store, pool: Pool, columns: Mapping[str, Column], seed: int = 0
) -> duckdb.DuckDBPyConnection:
    """A connection with the table `samples`: uid, shard, key, draw and `columns`, in pool order.

    Raises UserError where a part is missing.
    """
    parts = check_parts(store, pool, columns.values())
    tables = []
    for shard in pool.shards:
        table = read_samples(store, shard.name, columns, parts)
        tables.append(table.append_column("shard", pa.repeat(pa.scalar(shard.name), len(table))))
    connection = locked_connection()
    connection.register("batch", pa.concat_tables(tables))
    draw = DRAW.format(name="draw", seed=seed)
    connection.execute(f"create table samples as select *, {draw}::FLOAT as draw from batch")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The result of one SELECT as an Arrow table."""
    table: pa.Table = connection.sql(sql).to_arrow_table()
    return table
