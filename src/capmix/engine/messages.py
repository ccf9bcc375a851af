"""Messages go to the logger `capmix`; here is how a process of ours shows them.

A library prints nothing: Python code that imports capmix sees warnings alone, as logging shows them
by default. The command line, and the processes that it starts, show everything on standard error.
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
    """What is shown: messages of at least `level`, progress as `progress`, both in `log_file`
    too."""

    level: int = logging.INFO
    progress: ProgressForm = "auto"
    log_file: str | None = None


class _Lines(logging.Handler):
    """One line per message on standard error, above a progress bar where there is one."""

    def __init__(self, form: MessageForm):
        super().__init__(form.level)
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """Names, texts and answers of servers steer no terminal."""
        return printable(super().format(record), keep="\n\t")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that has ended
            if self.form.progress == "json":
                level = record.levelname.lower()
                _write_json({"event": "message", "level": level, "text": record.getMessage()})
            else:
                tqdm.write(self.format(record), file=sys.stderr)


class _LogFile(logging.FileHandler):
    """A file that several processes append to."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A disk that is full stops nothing."""


def current() -> MessageForm | None:
    """How this process shows its messages; None where it does not."""
    handler = _console()
    return None if handler is None else handler.form


def show(form: MessageForm = MessageForm()) -> list[logging.Handler]:
    """Show messages from now on; gives the handlers. Raises UserError where the log file cannot be
    written."""
    handlers: list[logging.Handler] = [_Lines(form)]
    file_level = min(form.level, logging.INFO)
    if form.log_file is not None:
        handlers.append(_opened(form.log_file, file_level))
    logger = logging.getLogger(ROOT)
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(min(handler.level for handler in handlers))
    logger.propagate = False  # Ray and others give the root logger handlers of their own
    return handlers


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within the block messages are shown."""
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
    """Show messages as `form` says, in place of how they are shown. Raises UserError as `show`
    does."""
    if form == current():
        return
    kinds = (_Lines, _LogFile)
    before = [one for one in logging.getLogger(ROOT).handlers if isinstance(one, kinds)]
    show(form)
    _hide(before)


def say_error(text: str) -> bool:
    """Note the error that ends a command in the log file; whether it was also shown, as JSON."""
    handler = _console()
    note(text, logging.ERROR)
    if handler is None or handler.form.progress != "json":
        return False
    with contextlib.suppress(OSError, ValueError):
        _write_json({"event": "error", "text": text})
    return True


def note(text: str, level: int = logging.INFO) -> None:
    """A line for the log file alone."""
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler, _LogFile):
            handler.handle(logging.LogRecord(ROOT, level, "", 0, text, None, None))


def say(text: str) -> None:
    """A line on standard error alone."""
    if (handler := _console()) is not None:
        handler.handle(logging.LogRecord(ROOT, logging.INFO, "", 0, text, None, None))


def say_event(event: Mapping[str, Any]) -> None:
    """A line of JSON on standard error."""
    if (handler := _console()) is not None:
        with handler.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            _write_json(event)


def progress_form() -> ProgressForm:
    """How progress is shown here: never `auto`. In a library, a bar or nothing."""
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
    """Whether bars are those of a notebook, whose standard error is no terminal."""
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def _console() -> _Lines | None:
    handlers = logging.getLogger(ROOT).handlers
    return next((one for one in handlers if isinstance(one, _Lines)), None)


def _opened(path: str, level: int) -> _LogFile:
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"--log-file {path}: cannot write it: {error.strerror or error}") from error
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
