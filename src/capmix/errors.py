"""The exception that ends a command with a message, and the exit code of all others."""

INTERNAL_ERROR = 70  # exit code; EX_SOFTWARE of <sysexits.h>


class UserError(Exception):
    """Something the user can fix: the message says what, where and what to do next."""
