"""The one exception that ends a command with a message instead of a traceback."""


class UserError(Exception):
    """Something the user can fix: the message says what, where and what to do next."""
