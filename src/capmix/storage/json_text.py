"""JSON of a file that anybody may have damaged: whatever is wrong with it is a ValueError."""

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """The value. Raises ValueError, with a short reason, also for what is nested too deeply."""
    if not data.strip():
        raise ValueError("empty")
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
