"""Summarize the files in a pool's folders that are ignored, and how to make them readable."""

from collections import Counter
from collections.abc import Iterable, Mapping

from capmix.pool.formats import install_hint
from capmix.settings.counted import counted
from capmix.settings.printable import printable

KINDS_SHOWN = 6
LONGEST_SUFFIX = 20


def ignored_line(counts: Mapping[str, int]) -> str:
    """Return a summary of ignored files by suffix; "" for none.

    Example: `5 files ignored (.heic 3: pip install 'capmix[heif]'; .svg 2)`. Suffixes that a
    package would make readable come first, then the most frequent ones.
    """
    total = sum(counts.values())
    if not total:
        return ""
    hints = {suffix: install_hint(suffix) for suffix in counts}
    order = sorted(counts, key=lambda one: (not hints[one], -counts[one], one))
    kinds = [
        f"{_shown(one)} {counts[one]:,}" + (f": {hints[one]}" if hints[one] else "")
        for one in order[:KINDS_SHOWN]
    ]
    if rest := order[KINDS_SHOWN:]:
        kinds.append(f"{len(rest):,} other suffixes {sum(counts[one] for one in rest):,}")
    files = counted(total, "file")
    return f"{files} ignored ({'; '.join(kinds)})"


def count_suffixes(names: Iterable[str]) -> Counter[str]:
    """Count file names by suffix."""
    return Counter(map(suffix_of, names))


def suffix_of(name: str) -> str:
    """Return what follows the last dot of a file name, in lower case; "" if there is no dot."""
    _, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot else ""


def _shown(suffix: str) -> str:
    return f".{printable(suffix):.{LONGEST_SUFFIX}}" if suffix else "no suffix"
