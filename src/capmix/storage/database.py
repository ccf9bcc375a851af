"""DuckDB databases of data that does not fit in memory."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb

MEMORY = "1GB"


def scratch_database(
    folder: str | Path, file: str = ":memory:", memory: str = MEMORY, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """Connect to a new database, which is closed after a `with` block.

    What exceeds `memory` is written to `folder`, which the caller removes; with `file`, the tables
    are in this file of it. Raises duckdb.Error, for example if the disk is full.
    """
    config: dict[str, Any] = {"temp_directory": f"{folder}/spilled", "memory_limit": memory}
    config |= {} if threads is None else {"threads": threads}
    place = file if file == ":memory:" else f"{folder}/{file}"
    connection = duckdb.connect(place, config=config)
    without_progress_bar(connection)
    return connection


def without_progress_bar(connection: duckdb.DuckDBPyConnection) -> None:
    """Turn off DuckDB's progress bar. In a notebook without ipywidgets there is none, and DuckDB
    raises for the setting."""
    with suppress(duckdb.InvalidInputException):
        connection.execute("set enable_progress_bar = false")
