"""The table that recipes are about: one row per sample of the pool, built from the parts.

Columns: uid, shard, key, width, height, draw (uniform in [0, 1) from seed and uid), and for each
source <source>_text and <source>_score (null where there is none), <source>_truncated (the scorer
did not read its end) and, for captions, <source>_flags (a list; see caption/flags.py).
"""

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from capmix.errors import UserError
from capmix.pool import Pool
from capmix.pool.index import FOLDER as SAMPLES
from capmix.score.stage import scores_folder, texts_folder
from capmix.store import Store

# The first 52 bits of sha256("draw/<seed>/<uid>") over 2^52.
DRAW = "('0x' || sha256('draw/{seed}/' || s.uid)[1:13])::UBIGINT / pow(2, 52)"


def sample_table(
    store: Store, pool: Pool, scorer: str | None, sources: Sequence[str], seed: int
) -> duckdb.DuckDBPyConnection:
    """A connection with the table `samples`, closed to files, network and extensions.

    Of several captions of one source, the first (k = 0) is taken. A uid that stands in several
    shards is kept in the first. Raises UserError where a part is missing.
    """
    connection = duckdb.connect()
    connection.execute("set preserve_insertion_order = true")
    _load(connection, store, pool, SAMPLES, "raw_part")
    columns = ["s.text as raw_text"]
    joins = []
    for source in sources:
        if source != "raw":
            _load(connection, store, pool, texts_folder(source), f"{source}_part")
            joins.append(_join(f"{source}_part", f"{source}_t"))
            columns.append(f"{source}_t.text as {source}_text")
            columns.append(f"{source}_t.flags as {source}_flags")
        if scorer is not None:
            folder = scores_folder(scorer, source)
            _load(connection, store, pool, folder, f"{source}_scores")
            joins.append(_join(f"{source}_scores", f"{source}_s"))
            columns.append(f"{source}_s.score as {source}_score")
            columns.append(f"{source}_s.truncated as {source}_truncated")
    connection.execute(f"""
        create table samples as
        select s.uid, s.shard, s.position, s.key, s.width, s.height,
               ({DRAW.format(seed=int(seed))})::FLOAT as draw, {", ".join(columns)}
        from raw_part s {" ".join(joins)}
        where s.status = 'ok'
        qualify row_number() over (partition by s.uid order by s.shard, s.position) = 1
        order by s.shard, s.position
    """)
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """The result of one SELECT as an Arrow table."""
    table: pa.Table = connection.sql(sql).to_arrow_table()
    return table


def _join(part: str, alias: str) -> str:
    first = f"coalesce({alias}.k, 0) = 0 and {alias}.status = 'ok'"
    return (
        f"left join {part} {alias} on {alias}.shard = s.shard and {alias}.uid = s.uid and {first}"
    )


def _load(
    connection: duckdb.DuckDBPyConnection, store: Store, pool: Pool, folder: str, name: str
) -> None:
    """Make table `name` of the finished parts of `folder`, with the columns shard and position."""
    finished = set(store.parts(folder))
    absent = [s.name for s in pool.shards if f"{folder}/{s.name}" not in finished]
    if absent:
        raise UserError(
            f"{store.path(folder)}: no finished part for shard {absent[0]} ({len(absent)} of "
            f"{len(pool.shards)} missing). Run the caption and score commands for it first."
        )
    tables = []
    for shard in pool.shards:
        table = store.read_table(f"{folder}/{shard.name}.parquet")
        shards = pa.array([shard.name] * len(table), pa.string())
        positions = pa.array(range(len(table)), pa.int64())
        tables.append(table.append_column("shard", shards).append_column("position", positions))
    joined = pa.concat_tables(tables)
    connection.register("joined", joined)
    connection.execute(f"create table {name} as select * from joined")
    connection.unregister("joined")
