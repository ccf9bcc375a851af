"""The exception that ends a command with a message, and the exit code of all others."""

INTERNAL_ERROR = 70  # exit code; EX_SOFTWARE of <sysexits.h>


class UserError(Exception):
    """Something the user can fix: the message says what, where and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook too it is one line; IPython asks for this."""
        text = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(self))
        return [f"{type(self).__name__}: {text}"]
