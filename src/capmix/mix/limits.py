"""Memory and time limits for the SQL of recipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.allowed import Size
from capmix.mix.functions import TextTooLongError
from capmix.mix.patterns import WORK, SlowCall

MEMORY = "1GB"  # DuckDB's memory limit, which does not cover the texts that expressions create
SECONDS = 600.0  # per batch of shards; fastText needs about 10 s for 200,000 texts
BYTES_AT_ONCE = 64 << 20  # of texts that expressions create, unless one row needs more
ROWS_AT_ONCE = 2048  # DuckDB's vector size
INTERRUPT_EVERY = 0.1  # seconds


@contextmanager
def limited(
    connection: duckdb.DuckDBPyConnection, place: str, seconds: float | None = None
) -> Iterator[None]:
    """Limit the queries run on `connection` in this context to `seconds` (default: SECONDS).

    Raises UserError, prefixed with `place`, when they exceed this time or the connection's memory
    limit, and for SQL errors.
    """
    limit = SECONDS if seconds is None else seconds
    done = Event()
    watch = Thread(target=_interrupt, args=(connection, limit, done), daemon=True)
    watch.start()
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
        line = str(error).splitlines()[0].rstrip(".!")
        raise UserError(
            f"{place}: {line.rpartition(f'{TextTooLongError.__name__}: ')[2]}"
        ) from error
    finally:
        done.set()
        watch.join()


def _interrupt(connection: duckdb.DuckDBPyConnection, seconds: float, done: Event) -> None:
    """Interrupt repeatedly: DuckDB drops an interrupt that arrives before a statement starts."""
    if done.wait(seconds):
        return
    while True:
        connection.interrupt()
        if done.wait(INTERRUPT_EVERY):
            return


def in_pieces(batch: pa.Table, size: Size, slow: Sequence[SlowCall] = ()) -> pa.Table:
    """Split a table into record batches that bound memory and time.

    For one record batch, expressions create about BYTES_AT_ONCE at most, given the `size` that they
    create per row, and the `slow` calls need about WORK steps at most.
    """
    longest = sum(_longest(column) for column in batch.columns)
    rows = max(1, BYTES_AT_ONCE // max(1, size.times * longest + size.extra))
    begins = _begins(batch, slow)
    if rows >= ROWS_AT_ONCE and len(begins) == 1:
        return batch
    ends = [*begins[1:], len(batch)]
    pieces = [
        piece
        for begin, end in zip(begins, ends, strict=True)
        for piece in batch.slice(begin, end - begin).to_batches(max_chunksize=rows)
    ]
    return pa.Table.from_batches(pieces, batch.schema)


def _begins(batch: pa.Table, slow: Sequence[SlowCall]) -> list[int]:
    """Return the first row of each piece that needs about WORK steps. DuckDB checks for interrupts
    between pieces."""
    if not slow or not len(batch):
        return [0]
    lengths = np.sum([_lengths(column) for column in batch.columns], axis=0)
    work = np.zeros(len(batch))
    for call in slow:
        work += call.steps * np.minimum(lengths * call.times, call.longest) ** call.power
    piece = np.floor(np.cumsum(work) / WORK)
    return [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist()]


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Return the bytes of each value, float64 (N,); 0 for numbers."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        found = pc.binary_length(column)
    elif pa.types.is_list(kind):
        found = pc.multiply(pc.list_value_length(column), 64)
    else:
        return np.zeros(len(column))
    lengths: np.ndarray = pc.fill_null(found, 0).to_numpy().astype(np.float64)
    return lengths


def _longest(column: pa.ChunkedArray) -> int:
    """Return the bytes of the longest value."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return int(pc.max(pc.binary_length(column)).as_py() or 0)
    if pa.types.is_list(kind):
        return int(pc.max(pc.list_value_length(column)).as_py() or 0) * 64
    return 16
