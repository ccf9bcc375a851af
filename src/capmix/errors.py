"""The exception for errors that the user can fix, and the exit code of internal errors."""

INTERNAL_ERROR = 70  # exit code; EX_SOFTWARE of <sysexits.h>


class UserError(Exception):
    """An error that the user can fix.

    The message is one line: what happened, where, and what to do next.
    """

    def _render_traceback_(self) -> list[str]:
        """Return the message as the only line; IPython shows it in place of the traceback."""
        text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(self))
        return [f"{type(self).__name__}: {text}"]


def reason(error: Exception) -> str:
    """Return the message of an error; of an OSError only its cause, for messages with the path."""
    return getattr(error, "strerror", None) or str(error)
