"""Handle standard output and standard error that are closed or cannot be written.

Standard output carries the result: a command that loses it exits with an error. Standard error is a
log: losing it stops nothing.
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
        """Whether the reader of the output has closed the pipe."""
        return self.number in CLOSED


class _Output:
    """A stream that raises OutputError, to tell its errors from those of other files.

    None stands for a closed stream.
    """

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
    """Within the block, raise OutputError when standard output cannot be written.

    Output to a closed standard error is discarded: `print(file=None)` would print it on standard
    output.
    """
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
    """Open the null device in place of the closed standard streams of this process.

    Otherwise the next opened file could get the descriptor of standard error, and C libraries would
    print into that file. Standard output is opened for reading, so that writing to it still fails.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # takes the lowest free one


def show_any_character() -> None:
    """Escape characters that the terminal's encoding lacks, instead of raising an error."""
    with contextlib.suppress(AttributeError, OSError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def say(line: str) -> None:
    """Print a line on standard error, if possible."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def drop_unwritten() -> None:
    """Discard buffered output that cannot be written.

    The interpreter would retry at exit, fail, and replace the exit code.
    """
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
