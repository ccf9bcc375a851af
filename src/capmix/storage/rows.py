"""Columns that every part has: the sample of a row, and its status."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pyarrow as pa

OK, DROPPED, FAILED = "ok", "dropped", "failed"

STATUS_FIELDS = [
    ("uid", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
]
STATUS = [name for name, _ in STATUS_FIELDS]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a part. A row that is not ok has a reason; an unknown uid is None."""

    uid: str | None
    key: str
    status: str = OK
    reason: str | None = None
    detail: str | None = None
    values: tuple[Any, ...] = ()


def table_of(rows: Sequence[Row], fields: Sequence[tuple[str, pa.DataType]]) -> pa.Table:
    """Return a table of the status columns followed by `fields`.

    The fields come from `values` of each row, and are null in rows without values.
    """
    columns: dict[str, pa.Array] = {}
    for name, kind in STATUS_FIELDS:
        columns[name] = pa.array(list(map(attrgetter(name), rows)), kind)
    for position, (name, kind) in enumerate(fields):
        filled = [row.values[position] if row.values else None for row in rows]
        columns[name] = pa.array(filled, kind)
    return pa.table(columns)


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a part's table, with only the status columns."""
    columns = (table.column(name).to_pylist() for name, _ in STATUS_FIELDS)
    return [Row(*values) for values in zip(*columns, strict=True)]


def column_names(fields: Sequence[tuple[str, pa.DataType]]) -> tuple[str, ...]:
    """Return the column names of the tables that table_of creates with these fields."""
    return (*(name for name, _ in STATUS_FIELDS), *(name for name, _ in fields))


def with_columns(
    fields: Sequence[tuple[str, pa.DataType]],
) -> Callable[[pa.Table], pa.Table]:
    """Return a function that adds the `fields` that a table lacks, as null in every row."""

    def add(table: pa.Table) -> pa.Table:
        for name, kind in fields:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), kind))
        return table

    return add
