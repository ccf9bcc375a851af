"""Parse a call of capmix as the command line does, values included, and run nothing."""

import functools
from collections.abc import Sequence
from typing import Any

from cyclopts import App

from capmix.cli.main import make_app
from capmix.cli.tokens import behind_command
from capmix.errors import UserError


@functools.cache
def _app() -> App:
    return make_app()


def check_call(arguments: Sequence[str]) -> None:
    """Raise CycloptsError or UserError for what the real command would refuse before it begins."""
    if "..." in arguments:
        raise UserError("`...` stands for something that the reader would have to know")
    command, bound, *_ = _app().parse_args(
        behind_command(arguments), exit_on_error=False, print_error=False
    )
    _with_values_checked(command, bound.args, bound.kwargs)


def _with_values_checked(command: Any, args: Any, kwargs: Any) -> None:
    """Call what capmix.cli.options.command made with a function that does nothing in it."""
    code = getattr(command, "__code__", None)
    if code is None or "function" not in code.co_freevars:  # --help, --version, completion
        return
    cell = command.__closure__[code.co_freevars.index("function")]
    real = cell.cell_contents
    cell.cell_contents = lambda *_, **__: None
    try:
        command(*args, **kwargs)
    finally:
        cell.cell_contents = real
