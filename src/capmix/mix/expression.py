"""The SQL expressions of recipes, parsed and checked with DuckDB's own parser before they run.

An expression can use columns and the functions of allowed.py. Some functions depend on more than
one row; they are replaced here by columns or constants:

threshold(value, fraction)   the value that the top `fraction` of the pool reaches (threshold.py)
top(value, fraction)         value >= threshold(value, fraction)
datacomp_threshold(...)      same as threshold, but null if too few samples have a value
normalised(value)            (value - min) / (max - min) over the pool (scale.py)
zscore(value)                (value - mean) / standard deviation over the pool
in_list('name')              whether the sample's uid is in the list of that name
times_in_list('name')        how often it is in the list
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import isnan
from typing import Any

import duckdb

from capmix.errors import UserError
from capmix.mix.allowed import Size, check_expression, children, slow_call_of
from capmix.mix.patterns import AT_MOST, SlowCall
from capmix.mix.recipe import check_fraction
from capmix.mix.scale import NORMALISED, ZSCORE

Node = dict[str, Any]
SLOW_TOGETHER = 10  # slow calls that each get the full work per row; more calls share it
MAX_OPENED = 500  # "(": DuckDB's time grows with the square of those that are not closed
LIST_COLUMN = "list_{}"
OF_FIELDS = "field"
DATACOMP_THRESHOLD = "datacomp_threshold"
THRESHOLDS = frozenset({"threshold", "top", DATACOMP_THRESHOLD})
SCALES = frozenset({NORMALISED, ZSCORE})


@dataclass(frozen=True)
class PoolScale:
    """normalised(value) or zscore(value), a function of one line over the pool; `value` is an SQL
    expression."""

    function: str
    value: str
    columns: frozenset[str]

    def __str__(self) -> str:
        return f"{self.function}({self.value})"


@dataclass(frozen=True)
class Threshold:
    """The value that the top `fraction` of the pool reaches; `value` is an SQL expression.

    If fewer samples have a value, every value reaches the threshold; none does if `is_datacomp`.
    `sql` is the value with the placeholders of its `scales`.
    """

    value: str
    fraction: float
    columns: frozenset[str]
    is_datacomp: bool = False
    sql: str = field(default="", compare=False)
    scales: tuple[tuple[str, PoolScale], ...] = field(default=(), compare=False)

    def scaled(self, lines: Mapping[PoolScale, tuple[float, float]]) -> "Threshold":
        """Return the threshold with its scales' lines filled in."""
        return dataclasses.replace(self, sql=_with_lines(self.sql, self.scales, lines), scales=())

    def __str__(self) -> str:
        function = DATACOMP_THRESHOLD if self.is_datacomp else "threshold"
        return f"{function}({self.value}, {self.fraction:g})"


@dataclass(frozen=True)
class Expression:
    """A checked SQL expression, and what is needed to compute it.

    The keys of `thresholds` are placeholders in `sql` for the values of these thresholds. `of_rows`
    are the `columns` that are still needed once these values are known. `size` bounds the bytes
    created per row. The keys of `scales` are the beginnings of their placeholders in `sql`.
    """

    sql: str
    columns: frozenset[str]
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    size: Size = field(default_factory=Size)
    of_rows: frozenset[str] = frozenset()
    scales: dict[str, PoolScale] = field(default_factory=dict)

    def scaled(self, lines: Mapping[PoolScale, tuple[float, float]]) -> "Expression":
        """Return the expression with the lines (see Spread.line) of its scales filled in."""
        thresholds = {name: one.scaled(lines) for name, one in self.thresholds.items()}
        sql = _with_lines(self.sql, self.scales.items(), lines)
        return dataclasses.replace(self, sql=sql, thresholds=thresholds, scales={})

    def filled(self, values: dict[Threshold, float]) -> str:
        """Return the SQL with the values of its thresholds filled in, as FLOAT; null for NaN."""
        sql = self.sql
        for name, threshold in self.thresholds.items():
            # Scores are FLOAT: one equal to the threshold may differ from it as a DOUBLE.
            value = values[threshold]
            sql = sql.replace(name, f"({'null' if isnan(value) else repr(str(value))}::FLOAT)")
        return sql


def _with_lines(
    sql: str,
    scales: Iterable[tuple[str, PoolScale]],
    lines: Mapping[PoolScale, tuple[float, float]],
) -> str:
    for name, scale in scales:
        for part, number in zip(("start", "step"), lines[scale], strict=True):
            sql = sql.replace(f"{name}{part}_", f"({number!r}::DOUBLE)")
    return sql


def parse(text: str, place: str, names: Mapping[str, str] | None = None) -> Expression:
    """Parse and check `text`; `names` maps column names to their replacements.

    Raises UserError, prefixed with `place`, for an expression that is not valid in recipes.
    """
    try:
        return _parse(text, place, names or {})
    except RecursionError as error:
        raise UserError(f"{place}: the expression is nested too deeply") from error
    except duckdb.Error as error:  # lone surrogates, which are not valid UTF-8
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from error


def _parse(text: str, place: str, names: Mapping[str, str]) -> Expression:
    node = _parsed(text, place)
    _join_fields(node, names)
    size = check_expression(node, place)
    functions = frozenset(_functions_in(node))  # also those inside thresholds
    found = _Found(place, _unused("capmix_threshold_", node), _unused("capmix_scale_", node))
    node = _replaced(node, found)
    thresholds = found.thresholds
    of_rows = frozenset(_columns(node, place) - set(thresholds) - set(found.placeholders()))
    columns = of_rows.union(*(threshold.columns for threshold in thresholds.values()))
    return Expression(_sql(node), columns, thresholds, functions, size, of_rows, found.scales)


def _unused(name: str, node: Node) -> str:
    """Return `name`, with "_" appended while a string or column of the expression contains it."""
    while name in json.dumps(node).lower():
        name += "_"
    return name


@lru_cache(256)
def bounded(sql: str) -> tuple[str, tuple[SlowCall, ...]]:
    """Return `sql` with the text arguments of slow functions wrapped in capmix_at_most, and these
    calls. The expressions in `sql` must have been checked by `parse`."""
    statement = _serialized(sql)
    nodes = [(node, slow_call_of(node)) for node in _walk(statement)]
    calls = [(node, call) for node, call in nodes if call is not None]
    if not calls:
        return sql, ()
    share = min(1.0, SLOW_TOGETHER / len(calls))
    shared = [(node, dataclasses.replace(call, share=share)) for node, call in calls]
    for node, call in reversed(shared):  # inner calls first, as wrapping moves the nodes inside
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
    """Join field.NAME (a field of the samples' JSON) into one column name, and replace `names`."""
    for one in _walk(node):
        if one["class"] == "COLUMN_REF":
            first, *rest = one["column_names"]
            if len(rest) == 1 and first.lower() == OF_FIELDS:
                one["column_names"] = [f"{OF_FIELDS}.{rest[0]}"]
            elif not rest:
                one["column_names"] = [names.get(first, first)]


def _parsed(text: str, place: str) -> Node:
    if text.count("(") > MAX_OPENED:
        raise UserError(f"{place}: the expression is nested too deeply")
    if "\0" in text:  # DuckDB cuts names there when it prints SQL: unchecked SQL would run
        raise UserError(f"{place}: the expression contains a zero byte")
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


@dataclass
class _Found:
    """The thresholds and scales found in an expression so far, by placeholder.

    Placeholders begin with `threshold` and `scale`.
    """

    place: str
    threshold: str
    scale: str
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    scales: dict[str, PoolScale] = field(default_factory=dict)

    def placeholders(self) -> Iterator[str]:
        """Yield the names that stand for the numbers of the scales."""
        for name in self.scales:
            yield from (f"{name}start_", f"{name}step_")


def _replaced(node: Any, found: _Found, keeps_scales: bool = False) -> Any:
    """Return `node` with threshold, top, in_list and, unless `keeps_scales`, scales replaced. The
    thresholds and scales are added to `found`."""
    if isinstance(node, list):
        return [_replaced(one, found, keeps_scales) for one in node]
    if not isinstance(node, dict):
        return node
    name = str(node.get("function_name", "")).lower() if node.get("class") == "FUNCTION" else ""
    place = found.place
    if name in THRESHOLDS:
        one = _threshold(node, found)
        column = f"{found.threshold}{len(found.thresholds)}_"
        found.thresholds[column] = one
        is_plain = one.value.isidentifier()
        return _parsed(_top(one.sql, is_plain, column) if name == "top" else column, place)
    if name in SCALES and not keeps_scales:
        return _parsed(_scale(node, name, found), place)
    if name in ("in_list", "times_in_list"):
        column = LIST_COLUMN.format(_list_name(node, place))
        return _parsed(column if name == "times_in_list" else f"({column} > 0)", place)
    return {key: _replaced(value, found, keeps_scales) for key, value in node.items()}


def _top(value: str, is_plain: bool, threshold: str) -> str:
    """Return the SQL of `top`. NaN, the largest number in SQL, is not a value; plain columns have
    no NaN (columns.read_samples)."""
    least = f"({value})::FLOAT >= {threshold}"
    return least if is_plain else f"{least} and not isnan(({value})::FLOAT)"


def _threshold(node: Node, found: _Found) -> Threshold:
    place, arguments = found.place, _arguments(node)
    if len(arguments) != 2:
        raise UserError(f"{place}: expected {node['function_name']}(value, fraction)")
    fraction = _sql(arguments[1])
    if THRESHOLDS.intersection(_functions_in(arguments)):
        raise UserError(f"{place}: thresholds cannot be nested")
    try:
        number = check_fraction(json.loads(fraction))
    except ValueError as error:
        message = error if "expected" in str(error) else f"fraction {fraction}: expected a number"
        raise UserError(f"{place}: {message}") from error
    shown = _replaced(arguments[0], found, keeps_scales=True)
    before = set(found.scales)
    inner = _replaced(arguments[0], found)
    scales = tuple((name, one) for name, one in found.scales.items() if name not in before)
    columns = frozenset(_columns(shown, place))
    is_datacomp = node["function_name"].lower() == DATACOMP_THRESHOLD
    return Threshold(_sql(shown), number, columns, is_datacomp, _sql(inner), scales)


def _scale(node: Node, name: str, found: _Found) -> str:
    """Return the SQL of a scale: null for a value that is not finite."""
    place, arguments = found.place, _arguments(node)
    if len(arguments) != 1:
        raise UserError(f"{place}: expected {name}(value)")
    if (THRESHOLDS | SCALES).intersection(_functions_in(arguments)):
        raise UserError(f"{place}: {name} cannot contain thresholds, {NORMALISED} or {ZSCORE}")
    inner = _replaced(arguments[0], found)
    value = _sql(inner)
    placeholder = f"{found.scale}{len(found.scales)}_"
    found.scales[placeholder] = PoolScale(name, value, frozenset(_columns(inner, place)))
    number = f"(({value})::FLOAT)"
    line = f"({number}::DOUBLE - {placeholder}start_) / {placeholder}step_"
    return f"case when isfinite({number}) then {line} end"


def _functions_in(node: Any) -> set[str]:
    return {str(one["function_name"]).lower() for one in _walk(node) if _is_function(one)}


def _list_name(node: Node, place: str) -> str:
    arguments = [_sql(argument) for argument in _arguments(node)]
    name = arguments[0].strip("'") if len(arguments) == 1 else ""
    if not name.isidentifier():
        raise UserError(f"{place}: expected the name, in '', of a list given by --uids NAME=FILE")
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
    """Return the arguments of a call. DuckDB before 2.0 names them children and does not wrap
    them."""
    listed = node.get("arguments") or node.get("children") or []
    return [one.get("expression", one) for one in listed]


def _without_places(node: Any) -> Any:
    """Return a statement without its expression and without positions in the text."""
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
    """Return a new cursor, as threads may parse at the same time."""
    return _connection().cursor()


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"enable_external_access": False, "lock_configuration": True})
