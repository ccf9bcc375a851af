"""The one place where commands print on standard output."""

from collections.abc import Iterable

from capmix.settings.printable import printable


def show(lines: Iterable[str]) -> None:
    """Print lines at once; what does not print, a line break within a line too, is written out."""
    print("\n".join(map(printable, lines)), flush=True)
