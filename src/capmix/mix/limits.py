"""Bounds of memory and time for the SQL of recipes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.allowed import Size

MEMORY = "1GB"  # of what DuckDB counts: not the texts that expressions make
SECONDS = 600.0  # a batch of 200,000 samples; fastText takes about 10 for as many texts
BYTES_AT_ONCE = 64 << 20  # of the texts that expressions make, unless one row takes more
ROWS_AT_ONCE = 2048  # DuckDB's own


@contextmanager
def limited(
    connection: duckdb.DuckDBPyConnection, place: str, seconds: float | None = None
) -> Iterator[None]:
    """What is run on `connection` meanwhile may take `seconds` (default: SECONDS) and the memory
    that it was given. Raises UserError, which begins with `place`, for that and what SQL says."""
    limit = SECONDS if seconds is None else seconds
    timer = Timer(limit, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise UserError(
            f"{place}: its SQL took over {limit:g} s for some shards; use simpler conditions"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise UserError(
            f"{place}: its SQL needs more than {MEMORY} for some shards; use simpler conditions"
        ) from error
    except duckdb.Error as error:
        raise UserError(f"{place}: {str(error).splitlines()[0].rstrip('.!')}") from error
    finally:
        timer.cancel()


def in_pieces(batch: pa.Table, size: Size) -> pa.Table:
    """The same rows in record batches of so few that expressions make about BYTES_AT_ONCE of them,
    given the `size` of what they make of one row."""
    longest = sum(_longest(column) for column in batch.columns)
    rows = BYTES_AT_ONCE // max(1, size.times * longest + size.extra)
    if rows >= ROWS_AT_ONCE:
        return batch
    return pa.Table.from_batches(batch.to_batches(max_chunksize=max(1, rows)), batch.schema)


def _longest(column: pa.ChunkedArray) -> int:
    """Bytes of the longest value."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return int(pc.max(pc.binary_length(column)).as_py() or 0)
    if pa.types.is_list(kind):
        return int(pc.max(pc.list_value_length(column)).as_py() or 0) * 64
    return 16
