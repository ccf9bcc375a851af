"""Support for capmix 0.1: its markers are next to the parts, without format number or columns."""

import contextlib
import os
from pathlib import Path

from capmix.storage.json_text import parse_json
from capmix.storage.layout import (
    ANNOTATIONS,
    CAPTIONS,
    EMBEDDINGS,
    EVALSETS,
    EXPORT_MARKERS,
    MEASURES,
    PROBE_RESULTS,
    PROBES,
    SAMPLES,
    SCORES,
    SUBSETS,
)

LARGEST_MARKER = 1 << 26  # bytes
STATUS = ("uid", "key", "status", "reason", "detail")
# Columns of the parts, by top-level folder.
COLUMNS = {
    SAMPLES: (*STATUS, "text", "width", "height", "bytes", "sha256"),
    EMBEDDINGS: STATUS,
    CAPTIONS: (*STATUS, "k", "text", "finish", "flags"),
    SCORES: (*STATUS, "k", "score", "truncated"),
}
# Folders in which a .json file was a marker.
MARKED = (
    SAMPLES, EMBEDDINGS, CAPTIONS, SCORES, ANNOTATIONS, MEASURES, SUBSETS, PROBES, PROBE_RESULTS,
    EVALSETS,
)  # fmt: skip


def columns_of(part: str) -> tuple[str, ...]:
    """Return the columns of a part that 0.1 wrote; empty if its kind had no fixed columns."""
    return COLUMNS.get(part.partition("/")[0], ())


def adopt(here: str, target: str) -> None:
    """Move a marker to its current location; if both exist, keep the newer one.

    A marker that cannot be moved, for example on a read-only disk, is read from its old location.
    Files that are not markers are left alone.
    """
    if f"/{EXPORT_MARKERS}/" in here or not _is_marker_file(here):
        return
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.exists(target) and _time(target) > _time(here):
            os.remove(here)
        else:
            os.replace(here, target)


def is_marker(data: bytes) -> bool:
    """Return whether a .json file is a marker: users may keep their own files next to parts."""
    try:
        value = parse_json(data)
    except ValueError:
        return False
    return isinstance(value, dict) and {"inputs", "config", "rows_in", "counts"} <= value.keys()


def _is_marker_file(path: str) -> bool:
    try:
        return os.stat(path).st_size <= LARGEST_MARKER and is_marker(Path(path).read_bytes())
    except OSError:
        return False


def _time(path: str) -> int:
    return os.stat(path).st_mtime_ns
