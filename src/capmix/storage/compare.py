"""Compare the settings that two parts were created with.

A setting at its default counts as absent, so that a new option in a later version does not
invalidate existing parts. Markers store all settings in full, so that a changed default is noticed.
"""

from collections.abc import Mapping
from typing import Any

MISSING = object()


class _Any:
    """Equal to every value."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()  # as a default: the setting does not count, for example a description


def same_settings(one: Any, other: Any, defaults: Any = None) -> bool:
    """Return whether both are equal, ignoring settings at their default.

    `defaults` has the same structure: a mapping by name, or, for a list, a list with the defaults
    of each element as its only item.
    """
    return bool(_without(one, defaults) == _without(other, defaults))


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Return `name old -> new` for each setting that differs."""
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
