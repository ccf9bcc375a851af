"""JSON of a file that anybody may have damaged: whatever is wrong with it is a ValueError."""

import json
from contextlib import suppress
from typing import Any

import orjson

# Every digit becomes a 0, every opening bracket a [.
OUTLINE = bytes.maketrans(b"123456789{", b"000000000[")
# orjson makes a float of an integer of over 64 bits, without a word; -2^63 has 19 digits.
LONG_NUMBER = b"0" * 19
# orjson reads what is nested more deeply than json.loads does, or than json.dumps can write.
MAX_BRACKETS = 100


def loads(data: bytes) -> Any:
    """The value of JSON as json.loads gives it, in about half of the time. Raises ValueError or
    RecursionError, those of json.loads.

    What orjson refuses (NaN, lone surrogates, another encoding than UTF-8) or would read
    differently is left to json.loads.
    """
    try:
        return _quickly(data)
    except ValueError:
        return json.loads(data)


def _quickly(data: bytes) -> Any:
    """Raises ValueError for what json.loads may read differently."""
    outline = data.translate(OUTLINE)
    if LONG_NUMBER in outline or outline.count(b"[") > MAX_BRACKETS:
        raise ValueError("long or deep")
    return orjson.loads(data)


def parse_json(data: bytes | str) -> Any:
    """The value. Raises ValueError, with a short reason, also for what is nested too deeply."""
    if not data.strip():
        raise ValueError("empty")
    if isinstance(data, bytes):
        with suppress(ValueError):
            return _quickly(data)
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {place}") from None


def parse_object(data: bytes | str) -> dict[str, Any]:
    """The object. Raises ValueError as parse_json does, and for a value of another kind."""
    value = parse_json(data)
    if not isinstance(value, dict):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        raise ValueError(f"{kinds.get(type(value), 'a number')} where an object is expected")
    return value
