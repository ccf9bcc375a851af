"""Options of `capmix view`."""

import getpass
from typing import Annotated

from pydantic import AfterValidator

from capmix.settings.base import Settings, option

SOURCE = "edited"
VIEW_PACKAGES = ("jinja2", "starlette", "uvicorn")
LONGEST_AUTHOR = 64  # characters


def account() -> str:
    """The name of this account of the system, or "unknown"."""
    try:
        return getpass.getuser()[:LONGEST_AUTHOR] or "unknown"
    except (KeyError, OSError):
        return "unknown"


def _author(name: str) -> str:
    if not name.strip() or len(name) > LONGEST_AUTHOR or not name.isprintable():
        raise ValueError(f"expected a name of 1 to {LONGEST_AUTHOR} printable characters")
    return name.strip()


class ViewSettings(Settings):
    """What the workbench shows, and what becomes of edits."""

    scorer: str | None = option(
        None, "Whose scores to show (default: the only scorer, or the only one not imported)."
    )
    port: int = option(0, "Port; 0 = a fixed port per work directory if free, else any free port.")
    results: str | None = option(
        None, "Directory of `capmix run` whose trained runs the report shows."
    )
    source: str = option(SOURCE, "Source that edits are written as.", group="Edits")
    author: Annotated[str, AfterValidator(_author)] | None = option(
        None, "Who edits (default: your account's name).", group="Edits"
    )
    read_only: bool = option(False, "Show everything, accept no edits.", group="Edits")
    fold: bool = option(
        False, "Write the parts of all edits made so far, then end; serves nothing.", group="Edits"
    )
