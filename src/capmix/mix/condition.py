"""A condition on single samples, in the language of recipes, for tables of samples."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import duckdb
import pyarrow as pa

from capmix.errors import UserError
from capmix.mix.expression import Expression, bounded, parse
from capmix.mix.limits import in_pieces, limited
from capmix.mix.plan import ALWAYS, DRAW, locked_connection
from capmix.settings.base import did_you_mean


@dataclass(frozen=True)
class Condition:
    """An expression about the columns of one sample, such as `raw_score < 0.2 and width > 300`."""

    text: str
    expression: Expression
    seed: int = 0

    @classmethod
    def of(cls, text: str, known: Collection[str], seed: int = 0) -> "Condition":
        """Check `text` against the columns there are. Raises UserError that begins with it; for
        thresholds too, which are about the whole pool."""
        place = f"where {text!r}"
        expression = parse(text, place)
        if expression.thresholds:
            raise UserError(
                f"{place}: threshold() and top() are about the whole pool; mix a recipe with them "
                "and read its subset"
            )
        for name in sorted(expression.columns - {*known, *ALWAYS, "draw"}):
            raise UserError(f"{place}: no column {name!r}{did_you_mean(name, known)}")
        return cls(text, expression, seed)

    @property
    def columns(self) -> list[str]:
        """The columns that it reads, beside those of every table and `draw`."""
        return sorted(self.expression.columns - {*ALWAYS, "draw"})

    def rows_of(self, table: pa.Table) -> pa.Table:
        """The rows of `table` for which it holds; null is no. Raises UserError for what SQL
        refuses, and where it takes too much memory or time."""
        place = f"where {self.text!r}"
        sql, slow = bounded(f"select ({self.expression.sql})::BOOLEAN as holds from {self._rows}")
        names = [*ALWAYS, *self.columns]
        batch = in_pieces(table.select(names), self.expression.size, slow)
        self._connection.register("batch", batch)
        try:
            with limited(self._connection, place):
                found = self._connection.sql(sql).to_arrow_table()["holds"]
        finally:
            self._connection.unregister("batch")
        if len(found) != len(table):
            raise UserError(f"{place}: not about single samples")
        return table.filter(found)

    @property
    def _rows(self) -> str:
        if "draw" not in self.expression.columns:
            return "batch"
        draw = DRAW.format(name="draw", seed=self.seed)
        return f"(select *, {draw}::FLOAT as draw from batch) as samples"

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return locked_connection(self.expression.functions)
