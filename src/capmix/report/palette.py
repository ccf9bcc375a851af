"""One colour per source, the same in all figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# Each colour has a contrast of at least 3:1 on white and on the page's dark background.
SOURCES = ("#3f7fdc", "#c26a00", "#2b9348", "#d9453d", "#0f8b8d", "#b5179e", "#8d6e00")
MIXED, OTHER = "#8a5be0", "#7f7f7f"


@dataclass(frozen=True)
class Palette:
    """Colours by source, in the given order; combinations of sources are MIXED."""

    sources: Sequence[str]
    _colours: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = sorted(self.sources, key=lambda source: source != "raw")
        colours = {name: SOURCES[i % len(SOURCES)] for i, name in enumerate(order)}
        object.__setattr__(self, "_colours", colours)

    def of(self, sources: Iterable[str]) -> str:
        """Return the colour of a text or recipe from `sources`."""
        known = set(sources)
        if len(known) > 1:
            return MIXED
        return self._colours.get(next(iter(known), ""), OTHER)
