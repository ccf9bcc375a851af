"""The metadata list of concept balancing: read it from a file, and keep it in the work directory.

The list is `metadata/<name>/entries.parquet`, so that workers of any machine read the same entries.
"""

import re
from collections.abc import Iterable

from capmix.annotate.settings import EXACT
from capmix.errors import UserError, reason
from capmix.storage.layout import entries_part
from capmix.storage.store import Store

MOST_ENTRIES = 5_000_000
LONGEST = 1_000  # bytes of an entry
LARGEST = 1 << 28  # bytes of the file
NO_WORD = re.compile(r"[^\w'-]+")


def entry_form(text: str, matching: str) -> str:
    """Return a text or an entry as it is compared: unchanged, or its lower-case words."""
    return text if matching == EXACT else NO_WORD.sub(" ", text.lower()).strip()


def read_entries(path: str, matching: str = EXACT) -> list[str]:
    """Return the distinct entries of a UTF-8 file with one per line, in order.

    White space around an entry and empty lines are ignored. Raises UserError if the file cannot be
    read, if it has no entry, or if an entry, their number or the file is too large.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"--entries {path}: {reason(error)}") from error
    if len(data) > LARGEST:
        raise UserError(f"--entries {path}: larger than {LARGEST >> 20} MiB")
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"--entries {path}: line {line} is not UTF-8") from error
    return checked_entries(lines, matching, f"--entries {path}")


def checked_entries(lines: Iterable[str], matching: str, place: str) -> list[str]:
    """Return the distinct entries among `lines`, in order. Raises UserError; see read_entries."""
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        entry = entry_form(line.strip(), matching)
        if len(entry.encode(errors="replace")) > LONGEST:
            raise UserError(f"{place}: line {number} has more than {LONGEST:,} bytes")
        if entry:
            found[entry] = None
    if not found:
        raise UserError(f"{place}: no entries; expected one per line")
    if len(found) > MOST_ENTRIES:
        raise UserError(f"{place}: {len(found):,} entries, but at most {MOST_ENTRIES:,} are used")
    return list(found)


def kept_entries(store: Store, name: str) -> list[str]:
    """Return the list of an annotation."""
    found: list[str] = store.read_table(f"{entries_part(name)}.parquet")["entry"].to_pylist()
    return found
