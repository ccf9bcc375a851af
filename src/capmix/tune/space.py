"""The search space of a recipe's parameters, and the candidates drawn from it."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from capmix.errors import UserError
from capmix.settings.values import split_values

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SPAN = re.compile(rf"({NUMBER})\.\.({NUMBER})")
DIGITS = 3  # significant digits of a drawn number, which is part of the subset's name
MAX_GRID = 100_000


@dataclass(frozen=True)
class Span:
    """All numbers from `low` to `high`."""

    low: float
    high: float


Values = Span | list[Any]
Space = Mapping[str, Values]


def parse_values(text: str) -> Values:
    """Parse `0.05..0.9` as a Span, and `a,b` or `0.1,0.3` as a list."""
    found = SPAN.fullmatch(text.strip())
    if found:
        return Span(float(found[1]), float(found[2]))
    return split_values(text)


def space_of(given: Mapping[str, Any]) -> dict[str, Values]:
    """Return the space of Python values: a tuple of two numbers is a Span, a list a choice.

    Raises UserError for an empty list, and unless the low end of a span is below the high end.
    """
    found: dict[str, Values] = {}
    for name, value in given.items():
        if isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)):
            value = Span(float(value[0]), float(value[1]))
        values = value if isinstance(value, Span | list) else [value]
        if isinstance(values, Span) and not values.low < values.high < math.inf:
            raise UserError(
                f"tune: {name}: {values.low:g}..{values.high:g}: expected LOW..HIGH with LOW below "
                "HIGH"
            )
        if isinstance(values, list) and not values:
            raise UserError(f"tune: {name}: no values; pass a list such as 0.1,0.3 or 0.05..0.9")
        found[name] = values if isinstance(values, Span) else _distinct(values)
    return found


def candidates(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Return up to `count` distinct combinations of parameters, a function of the arguments.

    If all parameters are lists, these are all combinations, or as many drawn without replacement.
    Otherwise a Latin hypercube (McKay, Beckman and Conover 1979): each parameter's range is cut
    into `count` equal parts, and each part is used once; the values of a list are used equally
    often. Drawn numbers have three significant digits.
    """
    if all(isinstance(values, list) for values in space.values()):
        return _grid(space, count, seed)
    columns = {name: _column(name, values, count, seed) for name, values in space.items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _distinct(rows)


def defaults_in(space: Space, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the default candidate.

    A parameter with one value has that; a number has the recipe's default `known`, and any other
    parameter its first value.
    """
    found: dict[str, Any] = {}
    for name, values in space.items():
        single = isinstance(values, list) and len(values) == 1
        numeric = isinstance(values, Span) or all(map(_is_number, values))
        if numeric and not single and name in known:
            found[name] = known[name]
        else:
            found[name] = values.low if isinstance(values, Span) else values[0]
    return found


def _grid(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    lists = [values for values in space.values() if isinstance(values, list)]
    if math.prod(map(len, lists)) > MAX_GRID:
        raise UserError(f"tune: more than {MAX_GRID:,} combinations; pass ranges such as 0.05..0.9")
    rows = [dict(zip(space, one, strict=True)) for one in itertools.product(*lists)]
    if len(rows) <= count:
        return rows
    chosen = sorted(range(len(rows)), key=lambda row: _hash(f"{seed}/{json.dumps(rows[row])}"))
    return [rows[row] for row in sorted(chosen[:count])]


def _column(name: str, values: Values, count: int, seed: int) -> Sequence[Any]:
    random = np.random.default_rng(int.from_bytes(_hash(f"{seed}/{name}")[:8], "little"))
    order = random.permutation(count)
    if isinstance(values, list):
        return [values[place % len(values)] for place in order.tolist()]
    places = (order + random.random(count)) / count
    drawn = values.low + (values.high - values.low) * places
    return [min(max(float(f"{one:.{DIGITS}g}"), values.low), values.high) for one in drawn]


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list({json.dumps(one, sort_keys=True): one for one in values}.values())


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
