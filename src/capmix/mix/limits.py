"""Bounds of memory and time for the SQL of recipes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.errors import UserError
from capmix.mix.allowed import Size
from capmix.mix.functions import TextTooLongError
from capmix.mix.patterns import WORK, SlowCall

MEMORY = "1GB"  # of what DuckDB counts: not the texts that expressions make
SECONDS = 600.0  # a batch of 200,000 samples; fastText takes about 10 for as many texts
BYTES_AT_ONCE = 64 << 20  # of the texts that expressions make, unless one row takes more
ROWS_AT_ONCE = 2048  # DuckDB's own
INTERRUPT_EVERY = 0.1  # seconds


@contextmanager
def limited(
    connection: duckdb.DuckDBPyConnection, place: str, seconds: float | None = None
) -> Iterator[None]:
    """What is run on `connection` meanwhile may take `seconds` (default: SECONDS) and the memory
    that it was given. Raises UserError, which begins with `place`, for that and what SQL says."""
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
    """Again and again: DuckDB forgets an interrupt that comes before a statement has begun."""
    if done.wait(seconds):
        return
    while True:
        connection.interrupt()
        if done.wait(INTERRUPT_EVERY):
            return


def without_progress_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """In a notebook without ipywidgets there is no bar, and DuckDB refuses the setting."""
    with suppress(duckdb.InvalidInputException):
        connection.execute("set enable_progress_bar = false")


def in_pieces(batch: pa.Table, size: Size, slow: Sequence[SlowCall] = ()) -> pa.Table:
    """The same rows in record batches of so few that expressions make about BYTES_AT_ONCE of them,
    given the `size` of what they make of one row, and that the `slow` calls take about WORK."""
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
    """The first row of each piece that takes about WORK; DuckDB notices an interrupt between."""
    if not slow or not len(batch):
        return [0]
    lengths = np.sum([_lengths(column) for column in batch.columns], axis=0)
    work = np.zeros(len(batch))
    for call in slow:
        work += call.steps * np.minimum(lengths * call.times, call.longest) ** call.power
    piece = np.floor(np.cumsum(work) / WORK)
    return [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist()]


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    """float64 (N,): bytes of each value, 0 for a number."""
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
    """Bytes of the longest value."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return int(pc.max(pc.binary_length(column)).as_py() or 0)
    if pa.types.is_list(kind):
        return int(pc.max(pc.list_value_length(column)).as_py() or 0) * 64
    return 16
