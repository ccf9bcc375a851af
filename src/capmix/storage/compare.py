"""Whether two descriptions of how something was made say the same.

A setting at its default counts as absent: an option that a later version adds leaves what earlier
ones made valid. Markers hold all settings in full, so that a default that changes is seen.
"""

from collections.abc import Mapping
from typing import Any

MISSING = object()


def same_settings(one: Any, other: Any, defaults: Any = None) -> bool:
    """Whether both are equal without what is at its default.

    `defaults` mirrors their form: a mapping by name, or [defaults of each element] for a list.
    """
    return bool(_without(one, defaults) == _without(other, defaults))


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """`name old -> new` for each setting that differs."""
    before, now = _without(before, defaults), _without(now, defaults)
    return [
        f"{name} {before.get(name, defaults.get(name))!r} -> {now.get(name, defaults.get(name))!r}"
        for name in sorted({*before, *now})
        if before.get(name, MISSING) != now.get(name, MISSING)
    ]


def _without(value: Any, defaults: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(defaults, Mapping):
        return {
            name: _without(one, defaults.get(name))
            for name, one in value.items()
            if name not in defaults or one != defaults[name]
        }
    if isinstance(value, list | tuple) and isinstance(defaults, list) and defaults:
        return [_without(one, defaults[0]) for one in value]
    return value
