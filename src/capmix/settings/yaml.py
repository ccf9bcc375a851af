"""Parse untrusted YAML within bounds."""

from typing import Any

import yaml

from capmix.errors import UserError

MAX_MERGED = 1_000


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader that limits what merge keys (`<<`) expand to."""

    def flatten_mapping(self, node: Any) -> None:
        """Merge mappings. Raises yaml.YAMLError for more than MAX_MERGED names or references."""
        before = len(node.value)
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        is_bounded = sum(len(value.value) for value in merged) <= MAX_MERGED
        if is_bounded:
            super().flatten_mapping(node)
        if not is_bounded or len(node.value) > before + MAX_MERGED:
            raise yaml.YAMLError(f"`<<` merges over {MAX_MERGED:,} names{node.start_mark}")


def parse_yaml(text: str, place: str) -> Any:
    """Return the value of YAML text. Raises UserError, prefixed with `place`, if it is invalid."""
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except Exception as error:  # also IndexError for `!!int ""`, RecursionError, ...
        raise UserError(f"{place}: invalid YAML: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem = " ".join(str(getattr(error, "problem", "")).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
