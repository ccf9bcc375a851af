"""json_text.loads returns and raises the same as the standard library's json.loads."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.storage.json_text import loads

PIECES = [
    *'{}[],:"-.0123456789eE+ \n\\ué猫',
    '"a":',
    "null",
    "true",
    "NaN",
    "-Infinity",
    "\\ud800",
    "\\udc00",
    "1e400",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "9" * 30,
    "\0",
    "\x7f",
]
# Enough digits to test how floats are rounded, and integers of more than 64 bits.
number = st.from_regex(r"\A-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,3})?\Z")
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def outcome(call: Any, data: bytes) -> str:
    """Return the repr of the value, with types, order and signs, or the error with its message."""
    try:
        return repr(call(data))
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"


def same(data: bytes) -> None:
    assert outcome(loads, data) == outcome(json.loads, data)


@given(value, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"]))
def test_values_are_those_of_json(value: Any, is_ascii: bool, encoding: str) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    same(text.encode(encoding, "surrogatepass"))


@given(number)
def test_numbers_are_those_of_json(text: str) -> None:
    same(text.encode())
    same(f'{{"a": [{text}]}}'.encode())


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans())
def test_broken_text_is_refused_in_the_same_words(pieces: list[str], in_object: bool) -> None:
    text = "".join(pieces)
    same((f'{{"a": 1, "b": "{text}", "a": {text}}}' if in_object else text).encode())


@given(st.binary(max_size=60))
def test_bytes_that_are_no_utf8_are_read_as_json_reads_them(data: bytes) -> None:
    same(data)
    same(b'{"a": "' + data + b'"}')


@pytest.mark.parametrize("depth", [50, 99, 101, 500, 1020, 3000])
def test_what_json_can_neither_read_nor_write_is_not_read(depth: int) -> None:
    """orjson itself accepts 1,020 nested lists."""
    data = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
    if depth < 900:
        assert json.dumps(loads(data)).encode() == data
    if depth > 1010:
        with pytest.raises(RecursionError):
            loads(data)


def test_a_random_object_of_many_numbers() -> None:
    draw = random.Random(0)
    fields = {f"f{i}": draw.choice([draw.random(), draw.getrandbits(66)]) for i in range(2000)}
    assert loads(json.dumps(fields).encode()) == fields
