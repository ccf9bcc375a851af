"""From options to settings: kinds of numbers, and errors that name the command."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

Settings = TypeVar("Settings")


def checked(options: argparse.Namespace, make: Callable[[], Settings]) -> Settings:
    """What `make` gives. Raises UserError, which names the command, for what is out of range."""
    from pydantic import ValidationError

    from capmix.errors import UserError
    from capmix.mix.recipe import describe

    try:
        return make()
    except ValidationError as error:
        raise UserError(f"{options.command}: {describe(error)}") from error


def settings_of(kind: "type[Model]", options: argparse.Namespace) -> "Model":
    """The settings that the options of the same names hold. Raises UserError."""
    return checked(
        options, lambda: kind(**{name: getattr(options, name) for name in kind.model_fields})
    )


def fraction(text: str) -> float:
    """Of an option. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a fraction from 0 to 1")
    return value


def positive(text: str) -> int:
    """Of an option. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number over 0")
    return int(text)
