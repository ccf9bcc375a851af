"""Messages go to the logger `capmix`; here is how a process of ours shows them.

A library prints nothing: Python code that imports capmix sees warnings alone, as logging shows them
by default. The command line, and the processes that it starts, show everything on standard error.
"""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm.auto import tqdm

from capmix.settings.printable import printable

ROOT = "capmix"


def progress(
    about: str,
    unit: str,
    total: int | None = None,
    work: Iterable[Any] | None = None,
    done: int = 0,
) -> Any:
    """A bar on a terminal and in a notebook that disappears at its end; elsewhere nothing is shown.

    `total` counts units, of which `done` were done before; with `work`, the bar is iterated.
    """
    # A notebook's standard error is no terminal.
    is_notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    return tqdm(
        work,
        about,
        total,
        leave=False,
        unit=unit,
        initial=done,
        disable=False if is_notebook else None,
    )


class _Lines(logging.Handler):
    """One line per message on standard error, above a progress bar where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Names, texts and answers of servers steer no terminal."""
        return printable(super().format(record), keep="\n\t")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that has ended
            tqdm.write(self.format(record), file=sys.stderr)


def are_shown() -> bool:
    """Whether messages for people are shown by this process."""
    return logging.getLogger(ROOT).isEnabledFor(logging.INFO)


def show() -> logging.Handler:
    """Show all messages from now on; gives the handler."""
    logger, handler = logging.getLogger(ROOT), _Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Ray and others give the root logger handlers of their own
    return handler


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within the block messages are shown."""
    logger = logging.getLogger(ROOT)
    before = logger.level
    handler = show()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True
