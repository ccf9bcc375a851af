"""The only module in which commands print to standard output."""

from collections.abc import Iterable

from capmix.settings.printable import printable


def show(lines: Iterable[str]) -> None:
    """Print lines and flush. Unprintable characters, line breaks within a line too, are escaped."""
    print("\n".join(map(printable, lines)), flush=True)
