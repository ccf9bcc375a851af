"""Read YAML that others wrote, within bounds."""

from typing import Any

import yaml

from capmix.errors import UserError

MAX_MERGED = 1_000


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader in which merge keys (`<<`) do not multiply what they merge."""

    def flatten_mapping(self, node: Any) -> None:
        """Raises yaml.YAMLError for more than MAX_MERGED names, or references to them."""
        before = len(node.value)
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        is_bounded = sum(len(value.value) for value in merged) <= MAX_MERGED
        if is_bounded:
            super().flatten_mapping(node)
        if not is_bounded or len(node.value) > before + MAX_MERGED:
            raise yaml.YAMLError(f"`<<` merges over {MAX_MERGED:,} names{node.start_mark}")


def parse_yaml(text: str, place: str) -> Any:
    """The value of YAML text. Raises UserError, which begins with `place`."""
    try:
        loader = _BoundedLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except Exception as error:  # beside YAMLError: IndexError for `!!int ""`, RecursionError, ...
        raise UserError(f"{place}: not YAML: {' '.join(str(error).split())}") from error
