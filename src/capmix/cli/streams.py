"""Standard output and standard error of a command, where they are closed or cannot be written.

The output is the result: a command whose output is lost ends with an error. Standard error is a
log: one that is lost stops nothing.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# Windows reports a closed pipe as an invalid argument.
CLOSED = (errno.EPIPE, errno.EINVAL) if sys.platform == "win32" else (errno.EPIPE,)


class OutputError(Exception):
    """Standard output cannot be written; `number` is the errno."""

    def __init__(self, number: int):
        super().__init__(os.strerror(number))
        self.number = number

    @property
    def is_closed_pipe(self) -> bool:
        """Whether what read the output has ended."""
        return self.number in CLOSED


class _Output:
    """A stream whose errors are told from those of other files. None stands for a closed one."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._errors() as stream:
            return stream.write(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._errors() as stream:
                stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[TextIO]:
        if self._stream is None:
            raise OutputError(errno.EBADF)
        try:
            yield self._stream
        except OSError as error:
            raise OutputError(error.errno or errno.EIO) from error


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Within the block, what cannot be written to standard output raises OutputError, and a closed
    standard error swallows what it is given: printing to None would print to standard output."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        if sys.stderr is None:
            sys.stderr = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        sys.stdout = cast(TextIO, _Output(sys.stdout))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def occupy_closed() -> None:
    """Put something in the place of closed standard streams of this process.

    The next file that is opened would else have the number of standard error, and what libraries
    written in C print would be written into it. Standard output stays one that cannot be written.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest number that is free


def show_any_character() -> None:
    """Escape what the terminal's encoding does not have, in place of an error."""
    with contextlib.suppress(AttributeError, OSError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def say(line: str) -> None:
    """Print a line on standard error if that is possible."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def drop_unwritten() -> None:
    """Forget what standard streams still hold where it cannot be written: the interpreter would try
    once more at its end, and replace the exit code by one of its own."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
