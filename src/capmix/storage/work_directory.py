"""The work directory of a command, and the pool that it belongs to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_object
from capmix.storage.layout import ABOUT
from capmix.storage.store import Store

WORK_VARIABLE = "CAPMIX_WORK"
LINKS = "follow_links"  # key in the work directory's pool.json, present if links are followed


def find_work(work: str | None) -> str:
    """Return `work`, CAPMIX_WORK, or the work directory that contains the current directory.

    Raises UserError if there is none.
    """
    if work is not None:
        return work
    if named := os.environ.get(WORK_VARIABLE):
        return named
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ABOUT).is_file():
            return str(folder)
    raise UserError(
        f"no work directory: pass --work, set {WORK_VARIABLE}, or change into a work directory"
    )


@dataclass(frozen=True)
class KnownPool:
    """The pool of a work directory, from its pool.json."""

    locations: list[str]
    follows_links: bool


def known_pool(store: Store, place: str) -> KnownPool | None:
    """Read the work directory's pool.json; return None if it does not exist.

    Raises UserError if it is damaged, so that parts of one pool are not used for another.
    """
    try:
        about = parse_object(store.read_bytes(ABOUT))
        known = about.get("pool")
        several: list[Any] = known if isinstance(known, list) else [known]
        if not several or not all(isinstance(one, str) and one for one in several):
            raise ValueError('"pool" is not a string or a list of strings')
        return KnownPool(several, about.get(LINKS) is True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:  # the file is not damaged
        raise
    except (IsADirectoryError, ValueError) as error:
        why = "a directory" if isinstance(error, OSError) else error
        raise UserError(
            f"work directory {place}: {ABOUT}, which records its pool, is damaged ({why}). "
            f"Restore it; or, if you are sure which POOL the directory belongs to, delete "
            f"{place}/{ABOUT} and run `capmix status POOL --work {place}` to recreate it"
        ) from error
