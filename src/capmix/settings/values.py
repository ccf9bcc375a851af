"""Parse values that the command line passes as one string: lists, pairs, weights, words."""

import shlex
from typing import Annotated, Any

from pydantic import BeforeValidator


def split_names(value: Any) -> Any:
    """Parse `raw,blip2` as a list; return any other type unchanged."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def split_values(text: str) -> list[float | str]:
    """Parse `a, b` or `0.1,0.3` as a list: numbers as float, other values as text."""
    return [_number(one) for one in split_names(text)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def split_paths(value: Any) -> Any:
    """Parse `a::b`, open_clip's form of several directories, as a list."""
    return [part for part in value.split("::") if part] if isinstance(value, str) else value


def as_list(value: Any) -> Any:
    """Return a string as a list of one; return any other type unchanged."""
    return [value] if isinstance(value, str) else value


def split_weights(value: Any) -> Any:
    """Parse `raw=0.5,blip2=0.5` as a mapping. Raises ValueError if a weight is not a number."""
    if not isinstance(value, str):
        return value
    pairs = [one.partition("=") for one in value.split(",")]
    try:
        return {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError as error:
        raise ValueError(f"{value!r}: expected weights such as raw=0.5,blip2=0.5") from error


def split_pairs(value: Any) -> Any:
    """Parse a list of `NAME=VALUE` as a mapping. Raises ValueError for another form."""
    if not isinstance(value, list | tuple):
        return value
    found = {}
    for text in value:
        name, sign, rest = str(text).partition("=")
        if not name.isidentifier() or not sign or not rest:
            raise ValueError(f"{text}: expected NAME=VALUE")
        found[name] = rest
    return found


def single_prompt(value: Any) -> Any:
    """Return a list of one prompt as the prompt itself."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def split_words(value: Any) -> Any:
    """Split `--lock-text --wd 0.1` like a shell. Raises ValueError for unclosed quotes."""
    return shlex.split(value) if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(split_names)]
Texts = Annotated[list[str], BeforeValidator(as_list)]
Numbers = Annotated[list[int], BeforeValidator(split_names)]
Paths = Annotated[list[str], BeforeValidator(split_paths)]
PathWeights = Annotated[list[float], BeforeValidator(split_paths)]
Weights = Annotated[dict[str, float], BeforeValidator(split_weights)]
Pairs = Annotated[dict[str, str], BeforeValidator(split_pairs)]
CaptionPrompt = Annotated[str | list[str], BeforeValidator(single_prompt)]
Words = Annotated[list[str], BeforeValidator(split_words)]
