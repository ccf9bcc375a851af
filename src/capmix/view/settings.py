"""Options of `capmix view`."""

import getpass
from typing import Annotated

from pydantic import AfterValidator

from capmix.settings.base import Settings, option
from capmix.storage.layout import EDITED

SOURCE = EDITED
VIEW_PACKAGES = ("jinja2", "starlette", "uvicorn")
LONGEST_AUTHOR = 64  # characters


def account() -> str:
    """Return the name of the system account, or "unknown"."""
    try:
        return getpass.getuser()[:LONGEST_AUTHOR] or "unknown"
    except (KeyError, OSError):
        return "unknown"


def _author(name: str) -> str:
    if not name.strip() or len(name) > LONGEST_AUTHOR or not name.isprintable():
        raise ValueError(f"expected 1 to {LONGEST_AUTHOR} printable characters")
    return name.strip()


class ViewSettings(Settings):
    """What the workbench displays, and how edits are written."""

    scorer: str | None = option(
        None,
        "Scorer whose scores to display (default: the only scorer, or the only one not imported).",
    )
    port: int = option(
        0,
        "Port; 0 = a fixed port per work directory if free, else any free port.",
        ge=0,
        le=65535,
    )
    results: str | None = option(
        None, "Output directory of `capmix run`; its trained runs are added to the report."
    )
    source: str = option(SOURCE, "Name of the source to write edits to.", group="Edits")
    author: Annotated[str, AfterValidator(_author)] | None = option(
        None, "Author of the edits (default: your system account).", group="Edits"
    )
    read_only: bool = option(False, "Disable edits.", group="Edits")
    fold: bool = option(
        False, "Write the parts of all edits and exit without starting a server.", group="Edits"
    )
