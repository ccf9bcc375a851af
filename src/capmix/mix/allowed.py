"""The SQL that recipes may use: functions, operators and types, and bounds on result sizes.

A listed function returns the same result for the same row in every run, and the size of the result
is bounded by the size of the row: DuckDB does not count the texts that expressions create against
its memory limit. Not listed, for example: random and now; repeat, lpad, format and range, whose
result size is given by a number; hex, base64 and url_encode, whose output multiplies when nested;
levenshtein and similar functions, whose time or memory is the product of two lengths; hash, which
differs between versions of DuckDB; time zones, which differ between hosts; lambdas, aggregates and
window functions.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from capmix.errors import UserError
from capmix.mix.patterns import MATCHING, SlowCall, slow_call
from capmix.settings.base import did_you_mean

Node = dict[str, Any]
MAX_TIMES = 500  # bytes that all steps of an expression create per byte of the row
MAX_EXTRA = 1 << 22  # bytes that they create in addition, whatever the size of the row
OWN = "threshold top datacomp_threshold normalised zscore in_list times_in_list"
OWN_OF_TEXT = "language word_count token_count imagenet_noun has_email has_phone"

FUNCTIONS = {
    "texts": """
        lower lcase upper ucase trim ltrim rtrim substring substr substring_grapheme left right
        left_grapheme right_grapheme reverse concat concat_ws replace translate split_part
        regexp_extract regexp_replace strip_accents nfc_normalize""",
    "properties of texts": """
        length len char_length character_length length_grapheme strlen ascii ord unicode
        instr position strpos contains starts_with ends_with prefix suffix jaccard hamming
        mismatches like_escape not_like_escape ilike_escape not_ilike_escape
        regexp_matches regexp_full_match""",
    "numbers": """
        abs acos acosh add asin asinh atan atan2 atanh bit_count cbrt ceil ceiling cos cosh cot
        degrees divide even exp factorial fdiv floor fmod gamma gcd greatest_common_divisor isfinite
        isinf isnan lcm least_common_multiple lgamma ln log log10 log2 mod multiply nextafter pi pow
        power radians round round_even roundbankers sign signbit sin sinh sqrt subtract tan tanh
        trunc xor""",
    "choices": "greatest least if nullif",
    "lists and structs": """
        list_value list_pack string_split str_split split string_to_array regexp_extract_all
        regexp_split_to_array string_split_regex str_split_regex list_concat list_cat array_concat
        array_cat list_append array_append list_prepend array_prepend list_slice array_slice
        list_extract list_element array_extract list_distinct array_distinct list_sort array_sort
        list_reverse_sort array_reverse_sort list_reverse array_reverse list_intersect
        array_intersect list_first list_last list_any_value list_min list_max array_to_string
        struct_pack row struct_extract struct_extract_at""",
    "properties of lists": """
        list_count list_sum list_avg list_median list_product list_bool_and list_bool_or list_unique
        array_unique list_contains list_has array_contains array_has list_has_all array_has_all
        list_has_any array_has_any list_position list_indexof array_position array_indexof
        array_length""",
    "json": """
        json_extract json_extract_path json_extract_string json_extract_path_text json_value""",
    "properties of json": "json_exists json_type json_valid json_array_length",
    "dates": """
        year month day hour minute second millisecond microsecond quarter week weekofyear weekday
        dayofweek dayofmonth dayofyear isodow isoyear yearweek era decade century millennium
        date_part datepart date_trunc datetrunc date_diff datediff date_sub datesub date_add dayname
        monthname last_day days_in_month make_date make_time make_timestamp epoch epoch_ms epoch_us
        epoch_ns julian strptime try_strptime to_years to_months to_weeks to_days to_hours
        to_minutes to_seconds to_milliseconds to_microseconds""",
    "hashes": "md5 sha1 sha256 md5_number md5_number_lower md5_number_upper",
    "capmix": f"{OWN} {OWN_OF_TEXT}",
    "operators": """
        + - * / // % ** ^ & | << >> ~ @ || ^@ ~~ !~~ ~~* !~~* ~~~ ->> && @> <@""",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NAMES = _words(" ".join(FUNCTIONS.values()))
OF_JSON = _words(FUNCTIONS["json"]) | {"->>"}
# Functions whose result is as large as all arguments together, or by a factor of FACTORS larger.
# The results of all others are small.
GROWING = _words(FUNCTIONS["texts"] + FUNCTIONS["lists and structs"] + FUNCTIONS["choices"])
GROWING |= OF_JSON | {"||"}
LETTER_CASE, NORMAL, TRANSLATED, PARSED, PIECES = 2, 3, 4, 8, 17  # a list adds 16 bytes per item
SPLITTING = _words(
    """string_split str_split split string_to_array regexp_extract_all regexp_split_to_array
    string_split_regex str_split_regex split_part"""
)
FACTORS = {
    **dict.fromkeys(("lower", "lcase", "upper", "ucase"), LETTER_CASE),
    **dict.fromkeys(("strip_accents", "nfc_normalize"), NORMAL),
    **dict.fromkeys(OF_JSON, PARSED),
    **dict.fromkeys(SPLITTING, PIECES),
    "translate": TRANSLATED,
}
# Positions of arguments that must be literals, so that their size is known.
WRITTEN_OUT = {
    "replace": (2,),
    "regexp_replace": (2,),
    "array_to_string": (1,),
    "concat_ws": (0,),
    **dict.fromkeys(OF_JSON | {"json_exists"}, (1,)),
}
WORDS = _words("varchar text string char bpchar json list")
TYPES = WORDS | _words(
    """boolean bool logical tinyint int1 smallint int2 short integer int int4 signed bigint int8
    long hugeint utinyint usmallint uinteger ubigint uhugeint float float4 real double float8
    decimal dec numeric date time timestamp datetime interval"""
)
CLASSES = _words(
    "COLUMN_REF CONSTANT FUNCTION OPERATOR COMPARISON CONJUNCTION CASE CAST BETWEEN TYPE"
)
OPERATORS_OF_SIZE = _words(
    """OPERATOR_COALESCE OPERATOR_NULLIF ARRAY_EXTRACT ARRAY_SLICE STRUCT_EXTRACT
    ARRAY_CONSTRUCTOR"""
)
OPERATORS = OPERATORS_OF_SIZE | _words(
    "COMPARE_IN COMPARE_NOT_IN OPERATOR_NOT OPERATOR_IS_NULL OPERATOR_IS_NOT_NULL"
)
REFUSED = {
    "SUBQUERY": "sub-queries",
    "WINDOW": "window functions",
    "STAR": "*",
    "PARAMETER": "parameters",
    "LAMBDA": "lambda functions",
    "COLLATE": "collations",
    "POSITIONAL_REFERENCE": "columns by number",
}


@dataclass(frozen=True)
class Size:
    """An upper bound of a result's size: `times` the bytes of the row's values, plus `extra`."""

    times: int = 0
    extra: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.times + other.times, self.extra + other.extra)

    def __mul__(self, factor: int) -> "Size":
        return Size(self.times * factor, self.extra * factor)


SMALL = Size(0, 64)


def check_expression(node: Node, place: str) -> Size:
    """Return a bound on the bytes that all steps of an expression create for a row.

    `node` comes from DuckDB's parser (json_serialize_sql). Raises UserError, prefixed with `place`,
    for SQL that is not listed here and for results that could be too large.
    """
    _, total = _sizes(node, place)
    if total.times > MAX_TIMES or total.extra > MAX_EXTRA:
        raise UserError(
            f"{place}: its texts could grow to {total.times:,} times the size of a sample plus "
            f"{total.extra:,} bytes; the limit is {MAX_TIMES} times plus {MAX_EXTRA:,} bytes"
        )
    return total


def _sizes(node: Node, place: str) -> tuple[Size, Size]:
    """Return a bound of a node's result, and one of this result and all intermediate results."""
    kind = node["class"]
    if kind not in CLASSES:
        raise UserError(f"{place}: recipes do not support {REFUSED.get(kind, kind.lower())}")
    made, total = Size(), Size()
    for child in children(node):
        size, below = _sizes(child, place)
        made, total = made + size, total + below
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        size = _of_function(name, node, made, place)
        if name in _words(OWN_OF_TEXT):  # these run in Python, which copies the texts
            total += made * PARSED
    elif kind == "OPERATOR":
        if node["type"] not in OPERATORS:
            raise UserError(f"{place}: recipes do not support {node['type'].lower()}")
        size = made if node["type"] in OPERATORS_OF_SIZE else SMALL
    elif kind == "CAST":
        size = _of_cast(node, made, place)
    elif kind == "COLUMN_REF":
        size = Size(1, 64)
    elif kind == "CONSTANT":
        size = Size(0, 64 + len(written_out(node) or json.dumps(node)))
    else:
        size = made if kind == "CASE" else SMALL
    return size, total + size


def _of_function(name: str, node: Node, arguments: Size, place: str) -> Size:
    if name not in NAMES or node.get("schema") or node.get("catalog"):
        hint = did_you_mean(name, NAMES)
        raise UserError(
            f"{place}: no function {name!r} in recipes{hint or ''}; docs/recipes.md lists the "
            "functions (they see only the sample's own row; for random numbers use the column draw)"
        )
    given = list(children(node))
    if name in MATCHING and len(given) > 1 and written_out(given[1]) is None:
        raise UserError(f"{place}: {name}: the pattern must be a literal in ''")
    for position in WRITTEN_OUT.get(name, ()):
        text = written_out(given[position]) if position < len(given) else ""
        if text is None:
            raise UserError(f"{place}: {name}: argument {position + 1} must be a literal in ''")
        if name in OF_JSON | {"json_exists"} and "*" in text:
            raise UserError(f"{place}: {name}: * is not supported in paths")
        if name not in OF_JSON:  # a separator per byte, or a copy per reference in a replacement
            arguments = arguments * (1 + 2 * len(text.encode("utf-8", "replace")))
    if name not in GROWING:
        return SMALL
    return arguments * FACTORS.get(name, 1) + SMALL


def slow_call_of(node: Node) -> SlowCall | None:
    """Return the time bounds of a call, or None if `node` is not a slow call.

    `node` must have passed check_expression.
    """
    if node["class"] != "FUNCTION":
        return None
    given = list(children(node))
    written = [written_out(one) for one in given]
    found = slow_call(str(node["function_name"]).lower(), written, 1)
    return found and replace(found, times=max(1, _sizes(given[0], "")[0].times))


def _of_cast(node: Node, made: Size, place: str) -> Size:
    names = [name.lower() for name in _type_names(node)]
    for name in names:
        if name not in TYPES:
            raise UserError(
                f"{place}: recipes do not support casts to {name}{did_you_mean(name, TYPES)}; use "
                "BOOLEAN, a numeric type, VARCHAR, DATE, TIME, TIMESTAMP, INTERVAL, JSON or a list"
            )
    if not WORDS.intersection(names):
        return SMALL
    # A list cast to text adds quotes around its items; a list of texts adds 16 bytes per item.
    return made * (PIECES if "list" in names else LETTER_CASE) + SMALL


def _type_names(node: Node) -> Iterator[str]:
    """Yield the names of the types in a cast. DuckDB 2 stores parsed types, older versions bound
    ones."""
    waiting: list[Any] = [node.get("type_expr") or node.get("cast_type")]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name = one.get("type_name") if one.get("class") == "TYPE" else one.get("id")
            if isinstance(name, str):
                yield name
            waiting += list(one.values())
        elif isinstance(one, list):
            waiting += one


def written_out(node: Node) -> str | None:
    """Return a constant's text or number as a string; None for any other node."""
    if node["class"] != "CONSTANT":
        return None
    literal = node.get("literal") or {}
    found = literal.get("text", (node.get("value") or {}).get("value"))
    return None if found is None else str(found)


def children(node: Any) -> Iterator[Node]:
    """Yield the direct child expressions of a node."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and "class" in value:
            if value["class"] != "TYPE":
                yield value
        elif isinstance(value, dict | list):
            yield from children(value)
