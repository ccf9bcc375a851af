"""One colour for each source, wherever it is drawn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

# Each has a contrast of 3:1 or more on white and on the page's dark background.
SOURCES = ("#3f7fdc", "#c26a00", "#2b9348", "#d9453d", "#0f8b8d", "#b5179e", "#8d6e00")
MIXED, OTHER = "#8a5be0", "#7f7f7f"


@dataclass(frozen=True)
class Palette:
    """Colours by source, in the order given; what is of several sources is MIXED."""

    sources: Sequence[str]
    _colours: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = sorted(self.sources, key=lambda source: source != "raw")
        colours = {name: SOURCES[i % len(SOURCES)] for i, name in enumerate(order)}
        object.__setattr__(self, "_colours", colours)

    def of(self, sources: Iterable[str]) -> str:
        """The colour of what is made of `sources`."""
        known = set(sources)
        if len(known) > 1:
            return MIXED
        return self._colours.get(next(iter(known), ""), OTHER)
