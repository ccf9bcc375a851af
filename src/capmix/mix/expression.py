"""The conditions of recipes: SQL expressions, taken apart by DuckDB's own parser before they run.

An expression may name columns and call the functions of allowed.py on them. Some functions are
about more than one row and are replaced here by plain columns or constants:

threshold(value, fraction)   the value that the top `fraction` of the pool reaches (threshold.py)
top(value, fraction)         value >= threshold(value, fraction)
datacomp_threshold(...)      as threshold, but null where fewer samples than asked for have a value
in_list('name')              the sample's uid stands in the list of that name
times_in_list('name')        how often it does
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import isnan
from typing import Any

import duckdb

from capmix.errors import UserError
from capmix.mix.allowed import Size, check_expression, children, slow_call_of
from capmix.mix.patterns import AT_MOST, SlowCall
from capmix.mix.recipe import check_fraction

Node = dict[str, Any]
SLOW_TOGETHER = 10  # calls with all the time of a row; more share it
MAX_OPENED = 500  # "(": of those that are not closed, DuckDB's time grows with the square
LIST_COLUMN = "list_{}"
OF_FIELDS = "field"
DATACOMP_THRESHOLD = "datacomp_threshold"
THRESHOLDS = frozenset({"threshold", "top", DATACOMP_THRESHOLD})


@dataclass(frozen=True)
class Threshold:
    """The value that the top `fraction` of the pool reaches; `value` is an SQL expression.

    Where fewer samples have a value, every value reaches it; none does where it `is_datacomp`.
    """

    value: str
    fraction: float
    columns: frozenset[str]
    is_datacomp: bool = False

    def __str__(self) -> str:
        function = DATACOMP_THRESHOLD if self.is_datacomp else "threshold"
        return f"{function}({self.value}, {self.fraction:g})"


@dataclass(frozen=True)
class Expression:
    """A checked SQL expression, and what must be there before it can be computed.

    In `sql`, a name that `thresholds` has stands for that threshold's number. `of_rows` are the
    `columns` that are still needed once these numbers are known. `size` bounds what is made for a
    row.
    """

    sql: str
    columns: frozenset[str]
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    size: Size = field(default_factory=Size)
    of_rows: frozenset[str] = frozenset()

    def filled(self, values: dict[Threshold, float]) -> str:
        """The SQL with the numbers of its thresholds in it, as FLOAT; null for NaN."""
        sql = self.sql
        for name, threshold in self.thresholds.items():
            # A double would compare otherwise with scores that lie on the threshold.
            value = values[threshold]
            sql = sql.replace(name, f"({'null' if isnan(value) else repr(str(value))}::FLOAT)")
        return sql


def parse(text: str, place: str, names: Mapping[str, str] | None = None) -> Expression:
    """The expression that `text` is, with `names` of columns replaced by others. Raises UserError,
    which begins with `place`."""
    try:
        return _parse(text, place, names or {})
    except RecursionError as error:
        raise UserError(f"{place}: too deep an expression") from error
    except duckdb.Error as error:  # lone surrogates, which no UTF-8 text can hold
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from error


def _parse(text: str, place: str, names: Mapping[str, str]) -> Expression:
    node = _parsed(text, place)
    _join_fields(node, names)
    size = check_expression(node, place)
    thresholds: dict[str, Threshold] = {}
    name = "capmix_threshold_"
    while name in json.dumps(node).lower():  # a text or a column may be called so
        name += "_"
    node = _replaced(node, thresholds, place, name)
    of_rows = frozenset(_columns(node, place) - set(thresholds))
    columns = of_rows.union(*(threshold.columns for threshold in thresholds.values()))
    functions = frozenset(str(n["function_name"]).lower() for n in _walk(node) if _is_function(n))
    return Expression(_sql(node), columns, thresholds, functions, size, of_rows)


@lru_cache(256)
def bounded(sql: str) -> tuple[str, tuple[SlowCall, ...]]:
    """A statement in which the texts of slow functions are bounded by capmix_at_most, and what is
    slow in it; `sql` is of expressions that `parse` has checked."""
    statement = _serialized(sql)
    nodes = [(node, slow_call_of(node)) for node in _walk(statement)]
    calls = [(node, call) for node, call in nodes if call is not None]
    if not calls:
        return sql, ()
    share = min(1.0, SLOW_TOGETHER / len(calls))
    shared = [(node, dataclasses.replace(call, share=share)) for node, call in calls]
    for node, call in reversed(shared):  # what is inside first: an outer call's text moves
        text = next(children(node))
        wrapped = _parsed(f"{AT_MOST}(x, {call.longest}, '{call.function}')", "")
        inner = next(children(wrapped))
        inner.clear()
        inner.update(text)
        text.clear()
        text.update(wrapped)
    rows = _parser().cursor().execute("select json_deserialize_sql(?)", [json.dumps(statement)])
    return str(rows.fetchall()[0][0]), tuple(call for _, call in shared)


def _join_fields(node: Node, names: Mapping[str, str]) -> None:
    """Make field.NAME, the field of the samples' JSON, one name, and replace `names`."""
    for one in _walk(node):
        if one["class"] == "COLUMN_REF":
            first, *rest = one["column_names"]
            if len(rest) == 1 and first.lower() == OF_FIELDS:
                one["column_names"] = [f"{OF_FIELDS}.{rest[0]}"]
            elif not rest:
                one["column_names"] = [names.get(first, first)]


def _parsed(text: str, place: str) -> Node:
    if text.count("(") > MAX_OPENED:
        raise UserError(f"{place}: too deep an expression")
    if "\0" in text:  # DuckDB writes a name out up to there: it would run what was not checked
        raise UserError(f"{place}: a zero byte")
    found = _serialized(f"select ({text}\n) from samples")
    if found["error"]:
        raise UserError(f"{place}: {found['error_message']}")
    nodes = [statement["node"] for statement in found["statements"]]
    expressions = nodes[0].get("select_list", []) if len(nodes) == 1 else []
    plain = _serialized("select 1 from samples")["statements"][0]["node"]
    if len(expressions) != 1 or _without_places(nodes[0]) != _without_places(plain):
        raise UserError(f"{place}: expected one SQL expression")
    node: Node = expressions[0]
    return node


def _replaced(node: Any, thresholds: dict[str, Threshold], place: str, called: str) -> Any:
    """`node` with threshold, top and in_list replaced; `thresholds` takes what was found, under
    names that begin with `called`."""
    if isinstance(node, list):
        return [_replaced(one, thresholds, place, called) for one in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("function_name", "")).lower() if node.get("class") == "FUNCTION" else ""
    if name in THRESHOLDS:
        found = _threshold(node, place)
        column = f"{called}{len(thresholds)}_"
        thresholds[column] = found
        return _parsed(_top(found.value, column) if name == "top" else column, place)
    if name in ("in_list", "times_in_list"):
        column = LIST_COLUMN.format(_list_name(node, place))
        return _parsed(column if name == "times_in_list" else f"({column} > 0)", place)
    return {key: _replaced(value, thresholds, place, called) for key, value in node.items()}


def _top(value: str, threshold: str) -> str:
    """NaN is the greatest number in SQL, but no score. Columns hold none (columns.read_samples)."""
    least = f"({value})::FLOAT >= {threshold}"
    return least if value.isidentifier() else f"{least} and not isnan(({value})::FLOAT)"


def _threshold(node: Node, place: str) -> Threshold:
    arguments = _arguments(node)
    if len(arguments) != 2:
        raise UserError(f"{place}: expected {node['function_name']}(value, fraction)")
    fraction = _sql(arguments[1])
    inside = (n["function_name"].lower() for n in _walk(arguments) if _is_function(n))
    if THRESHOLDS.intersection(inside):
        raise UserError(f"{place}: a threshold inside a threshold")
    try:
        number = check_fraction(json.loads(fraction))
    except ValueError as error:
        message = error if "expected" in str(error) else f"fraction {fraction}: expected a number"
        raise UserError(f"{place}: {message}") from error
    inner = _replaced(arguments[0], {}, place, "")
    columns = frozenset(_columns(inner, place))
    is_datacomp = node["function_name"].lower() == DATACOMP_THRESHOLD
    return Threshold(_sql(inner), number, columns, is_datacomp)


def _list_name(node: Node, place: str) -> str:
    arguments = [_sql(argument) for argument in _arguments(node)]
    name = arguments[0].strip("'") if len(arguments) == 1 else ""
    if not name.isidentifier():
        raise UserError(f"{place}: expected a name in '' that --uids NAME=FILE gives")
    return name


def _columns(node: Any, place: str) -> set[str]:
    found = set()
    for one in _walk(node):
        if one["class"] == "COLUMN_REF":
            if len(one["column_names"]) != 1:
                raise UserError(f"{place}: no column {'.'.join(one['column_names'])!r}")
            found.add(str(one["column_names"][0]))
    return found


def _walk(node: Any) -> Iterator[Node]:
    if isinstance(node, dict):
        if "class" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from _walk(one)


def _is_function(node: Node) -> bool:
    return bool(node.get("class") == "FUNCTION" and not node.get("is_operator"))


def _arguments(node: Node) -> list[Node]:
    """DuckDB before 2.0 calls them children, and does not wrap them."""
    listed = node.get("arguments") or node.get("children") or []
    return [one.get("expression", one) for one in listed]


def _without_places(node: Any) -> Any:
    """The statement around the expression, without where it stood in the text."""
    if isinstance(node, dict):
        left_out = ("select_list", "query_location", "query_location_length")
        return {k: _without_places(v) for k, v in node.items() if k not in left_out}
    return [_without_places(one) for one in node] if isinstance(node, list) else node


def _sql(node: Node) -> str:
    statement = _serialized("select 1 from samples")
    statement["statements"][0]["node"]["select_list"] = [node]
    rows = (
        _parser()
        .cursor()
        .execute("select json_deserialize_sql(?)", [json.dumps(statement)])
        .fetchall()
    )
    return str(rows[0][0]).removeprefix("SELECT ").removesuffix(" FROM samples")


def _serialized(sql: str) -> Node:
    rows = _parser().execute("select json_serialize_sql(?)", [sql]).fetchall()
    found: Node = json.loads(rows[0][0])
    return found


def _parser() -> duckdb.DuckDBPyConnection:
    """A cursor for each call: threads may parse at the same time."""
    return _connection().cursor()


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"enable_external_access": False, "lock_configuration": True})
