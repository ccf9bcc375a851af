"""Report an internal error: one line, and a file with the traceback."""

import contextlib
import os
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from capmix.errors import UserError
from capmix.storage.filesystem import without_secrets
from capmix.storage.layout import CRASH_LOG

LONGEST = 300  # maximum characters of the error text in the line


def crash_line(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the traceback to a file and return one line that names the error and the file.

    The file is in the command's work directory if that is a local one, otherwise in the directory
    for temporary files.
    """
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" in {Path(one.filename).name}:{one.lineno}" for one in last)
    text = " ".join(str(error).split())[:LONGEST]
    about = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _write("".join(traceback.format_exception(error)), arguments)
    seen = f"The traceback is in {place}" if place else "The traceback could not be written"
    return f"internal error{where}: {about}. {seen}; please report it"


def _write(text: str, arguments: Sequence[str]) -> str | None:
    """Return the file's path, or None if neither directory is writable."""
    data = without_secrets(text).encode("utf-8", "backslashreplace")
    work = _work_folder(arguments)
    if work is not None:
        with contextlib.suppress(OSError):
            path = Path(work, CRASH_LOG)
            path.write_bytes(data)
            return str(path)
    with contextlib.suppress(OSError):  # a unique name: the directory may be shared
        number, name = tempfile.mkstemp(prefix="capmix-", suffix=f"-{CRASH_LOG}")
        with open(number, "wb") as stream:
            stream.write(data)
        return name
    return None


def _work_folder(arguments: Sequence[str]) -> str | None:
    """Return the work directory of a command line, or None if it is not a local directory."""
    from capmix.storage.work_directory import find_work

    named = None
    for one, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if one == "--work":
            named = following
        elif one.startswith("--work="):
            named = one.removeprefix("--work=")
    try:
        place = find_work(named)
    except (UserError, OSError):
        return None
    return place if os.path.isdir(place) else None
