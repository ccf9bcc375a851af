"""Handlers that show the messages of the logger `capmix`.

As a library, capmix installs no handlers: Python code that imports it sees only warnings, which
`logging` prints by default. The command line and its worker processes show all messages on
standard error.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tqdm.auto import tqdm

from capmix.errors import UserError
from capmix.settings.printable import printable

ROOT = "capmix"
LOG_LINE = "%(asctime)s %(levelname)s %(message)s"

ProgressForm = Literal["auto", "bar", "json", "plain", "none"]


@dataclass(frozen=True)
class MessageForm:
    """What to show: messages from `level` up and progress in the form `progress`.

    Both are also written to `log_file` if it is set.
    """

    level: int = logging.INFO
    progress: ProgressForm = "auto"
    log_file: str | None = None


class _Lines(logging.Handler):
    """Writes one line per message to standard error, above a progress bar if there is one."""

    def __init__(self, form: MessageForm):
        super().__init__(form.level)
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """Escape control characters: names, texts and server responses are untrusted."""
        return printable(super().format(record), keep="\n\t")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk or a closed pipe
            if self.form.progress == "json":
                level = record.levelname.lower()
                _write_json({"event": "message", "level": level, "text": record.getMessage()})
            else:
                tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """Log file that several processes append to."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore errors: a full disk must not stop the run."""


def current() -> MessageForm | None:
    """Return how this process shows messages; None if it does not."""
    handler = _console()
    return None if handler is None else handler.form


def show(form: MessageForm = MessageForm()) -> list[logging.Handler]:
    """Start showing messages and return the new handlers.

    Raises UserError if the log file cannot be written.
    """
    handlers: list[logging.Handler] = [_Lines(form)]
    file_level = min(form.level, logging.INFO)
    if form.log_file is not None:
        handlers.append(_opened(form.log_file, file_level))
    logger = logging.getLogger(ROOT)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(min(handler.level for handler in handlers))
    logger.propagate = False  # Ray and other packages add handlers to the root logger
    return handlers


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Show messages within the block."""
    logger = logging.getLogger(ROOT)
    level, before = logger.level, list(logger.handlers)
    show()
    try:
        yield
    finally:
        _hide([handler for handler in logger.handlers if handler not in before])
        logger.setLevel(level)
        logger.propagate = True


def change(form: MessageForm) -> None:
    """Replace the current form of messages by `form`. Raises UserError as `show` does."""
    if form == current():
        return
    kinds = (_Lines, _LogFile)
    before = [one for one in logging.getLogger(ROOT).handlers if isinstance(one, kinds)]
    show(form)
    _hide(before)


def say_error(text: str) -> bool:
    """Log the error that ends a command to the log file. Return whether it was printed as JSON."""
    handler = _console()
    note(text, logging.ERROR)
    if handler is None or handler.form.progress != "json":
        return False
    with contextlib.suppress(OSError, ValueError):
        _write_json({"event": "error", "text": text})
    return True


def note(text: str, level: int = logging.INFO) -> None:
    """Write a line only to the log file."""
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler, _LogFile):
            handler.handle(logging.LogRecord(ROOT, level, "", 0, text, None, None))


def say(text: str) -> None:
    """Write a line only to standard error."""
    if (handler := _console()) is not None:
        handler.handle(logging.LogRecord(ROOT, logging.INFO, "", 0, text, None, None))


def say_event(event: Mapping[str, Any]) -> None:
    """Write a line of JSON to standard error."""
    if (handler := _console()) is not None:
        with handler.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            _write_json(event)


def progress_form() -> ProgressForm:
    """Return the form of progress, with `auto` resolved. As a library: a bar or none."""
    form = current()
    chosen = form.progress if form is not None else "auto"
    if chosen != "auto":
        return chosen
    if form is not None and form.level > logging.INFO:
        return "none"
    if is_notebook() or (sys.stderr is not None and sys.stderr.isatty()):
        return "bar"
    return "none" if form is None else "plain"


def is_notebook() -> bool:
    """Return whether tqdm draws notebook bars; there, standard error is not a terminal."""
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def _console() -> _Lines | None:
    handlers = logging.getLogger(ROOT).handlers
    return next((one for one in handlers if isinstance(one, _Lines)), None)


def _opened(path: str, level: int) -> _LogFile:
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"--log-file {path}: cannot be written: {why}") from error
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter(LOG_LINE))
    return handler


def _hide(handlers: Sequence[logging.Handler]) -> None:
    for handler in handlers:
        logging.getLogger(ROOT).removeHandler(handler)
        handler.close()


def _write_json(value: Mapping[str, Any]) -> None:
    sys.stderr.write(json.dumps(value) + "\n")
    sys.stderr.flush()
