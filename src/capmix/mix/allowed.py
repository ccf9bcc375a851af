"""The SQL that a recipe may use: functions, operators and types, and how large its results can be.

Listed here is what gives the same answer for the same row in every run, and a result whose size is
bounded by the row's: DuckDB takes the memory of texts that it makes from no budget of its own.
Left out, for example: random and now; repeat, lpad, format and range, whose results have the size
that a number says; hex, base64 and url_encode, which multiply when they are nested; levenshtein and
the like, whose time or memory is the product of two lengths; hash, which differs between versions
of DuckDB; time zones, which differ between machines; lambdas and functions of many rows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from capmix.errors import UserError
from capmix.mix.patterns import MATCHING, SlowCall, slow_call
from capmix.settings.base import did_you_mean

Node = dict[str, Any]
MAX_TIMES = 500  # bytes that an expression makes, all steps together, for a byte of the row
MAX_EXTRA = 1 << 22  # and beside these
OWN = "threshold top datacomp_threshold in_list times_in_list"
OWN_OF_TEXT = "language word_count token_count imagenet_noun"

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
# What stays as large as its arguments together, or grows by the factor below. The rest is small.
GROWING = _words(FUNCTIONS["texts"] + FUNCTIONS["lists and structs"] + FUNCTIONS["choices"])
GROWING |= OF_JSON | {"||"}
LETTER_CASE, NORMAL, TRANSLATED, PARSED, PIECES = 2, 3, 4, 8, 17  # a list takes 16 bytes a piece
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
# Arguments by place that must be written out, so that their size is known.
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
    """A bound of a result, in bytes: `times` those of the row's values, and `extra`."""

    times: int = 0
    extra: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(self.times + other.times, self.extra + other.extra)

    def __mul__(self, factor: int) -> "Size":
        return Size(self.times * factor, self.extra * factor)


SMALL = Size(0, 64)


def check_expression(node: Node, place: str) -> Size:
    """A bound of what all steps of an expression make together for a row.

    `node` is of DuckDB's parser (json_serialize_sql). Raises UserError, which begins with `place`,
    for what is not listed here and for results that could be too large.
    """
    _, total = _sizes(node, place)
    if total.times > MAX_TIMES or total.extra > MAX_EXTRA:
        raise UserError(
            f"{place}: its texts could grow to {total.times:,} times those of a sample, and "
            f"{total.extra:,} bytes; at most {MAX_TIMES} times and {MAX_EXTRA:,} bytes are allowed"
        )
    return total


def _sizes(node: Node, place: str) -> tuple[Size, Size]:
    """Bounds of the result of a node, and of all that is made on the way to it."""
    kind = node["class"]
    if kind not in CLASSES:
        raise UserError(f"{place}: a recipe cannot use {REFUSED.get(kind, kind.lower())}")
    made, total = Size(), Size()
    for child in children(node):
        size, below = _sizes(child, place)
        made, total = made + size, total + below
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        size = _of_function(name, node, made, place)
        if name in _words(OWN_OF_TEXT):  # Python's copies of the texts
            total += made * PARSED
    elif kind == "OPERATOR":
        if node["type"] not in OPERATORS:
            raise UserError(f"{place}: a recipe cannot use {node['type'].lower()}")
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
            f"{place}: no function {name!r} in recipes{hint or ''}; docs/recipes.md lists them "
            "(all are of the sample's own row; chance is the column draw)"
        )
    given = list(children(node))
    if name in MATCHING and len(given) > 1 and written_out(given[1]) is None:
        raise UserError(f"{place}: {name}: expected its pattern written out in ''")
    for position in WRITTEN_OUT.get(name, ()):
        text = written_out(given[position]) if position < len(given) else ""
        if text is None:
            raise UserError(f"{place}: {name}: expected argument {position + 1} written out in ''")
        if name in OF_JSON | {"json_exists"} and "*" in text:
            raise UserError(f"{place}: {name}: a path with * can stand for too much")
        if name not in OF_JSON:  # a piece for each byte, or each reference of a replacement
            arguments = arguments * (1 + 2 * len(text.encode("utf-8", "replace")))
    if name not in GROWING:
        return SMALL
    return arguments * FACTORS.get(name, 1) + SMALL


def slow_call_of(node: Node) -> SlowCall | None:
    """The bounds of time of a node that check_expression has passed; None where it needs none."""
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
                f"{place}: a recipe cannot cast to {name}{did_you_mean(name, TYPES)}; expected one "
                "of BOOLEAN, numbers, VARCHAR, DATE, TIME, TIMESTAMP, INTERVAL, JSON or lists"
            )
    if not WORDS.intersection(names):
        return SMALL
    # Texts of lists have quotes around their pieces; lists of texts 16 bytes beside each piece.
    return made * (PIECES if "list" in names else LETTER_CASE) + SMALL


def _type_names(node: Node) -> Iterator[str]:
    """Of DuckDB 2 as it parses types, and of older versions, which have bound them by then."""
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
    """The text or number that a constant is; None for anything else."""
    if node["class"] != "CONSTANT":
        return None
    literal = node.get("literal") or {}
    found = literal.get("text", (node.get("value") or {}).get("value"))
    return None if found is None else str(found)


def children(node: Any) -> Iterator[Node]:
    """The expressions right below a node."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and "class" in value:
            if value["class"] != "TYPE":
                yield value
        elif isinstance(value, dict | list):
            yield from children(value)
