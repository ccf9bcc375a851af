"""Define every option once: a field of a Settings class with type, default, range and help.

The command line, pipeline files, Python keywords, `--help` and the tables of docs/commands are
generated from these fields.
"""

import difflib
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from capmix.errors import UserError

Kind = TypeVar("Kind", bound="Settings")
Function = TypeVar("Function", bound=Callable[..., Any])
# YAML aliases let a few lines expand to lists that would exhaust memory when printed.
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
SHOWN = 80  # maximum characters of an invalid value in an error


class Settings(BaseModel):
    """Immutable options. Unknown names and values out of range are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class OptionInfo:
    """How a field is shown.

    `group` is the heading in `--help`, `name` the option's name if it differs from the field's,
    and `metavar` the placeholder of the value; `repeats` options may be given several times.
    """

    group: str = ""
    name: str | None = None
    metavar: str | None = None
    repeats: bool = False
    on_command_line: bool = True

    def __call__(self, schema: dict[str, Any]) -> None:
        """Add nothing to the JSON Schema of a pipeline file."""


def option(
    default: Any = ...,
    help: str = "",
    *,
    group: str = "",
    name: str | None = None,
    metavar: str | None = None,
    repeats: bool = False,
    on_command_line: bool = True,
    **bounds: Any,
) -> Any:
    """Return a field of a Settings class; `bounds` are pydantic's, such as ge=1 or min_length=1."""
    info = OptionInfo(group, name, metavar, repeats, on_command_line)
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=info, **bounds)
    return Field(default, description=help, json_schema_extra=info, **bounds)


def option_info(field: FieldInfo) -> OptionInfo:
    """Return the OptionInfo of a field; the defaults for a field without `option`."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, OptionInfo) else OptionInfo()


def option_name(name: str, field: FieldInfo) -> str:
    """Return a field's name as a Python keyword and, with dashes, on the command line."""
    return option_info(field).name or name


def options_of(kind: type[Settings]) -> dict[str, str]:
    """Return field names by option name."""
    return {option_name(name, field): name for name, field in kind.model_fields.items()}


def defaults_of(kind: type[Settings]) -> dict[str, Any]:
    """Return defaults by field name."""
    fields = kind.model_fields.items()
    return {name: field.get_default(call_default_factory=True) for name, field in fields}


def make(kind: type[Kind], given: Mapping[str, Any], place: str = "") -> Kind:
    """Return settings from `given` options, by option name; None stands for "not given".

    Raises UserError, prefixed with `place`, that names the invalid option.
    """
    names = options_of(kind)
    unknown = [name for name in given if name not in names]
    if unknown:
        hint = did_you_mean(unknown[0], names)
        raise UserError(_at(place, f"unknown option {unknown[0]!r}{hint}"))
    values = {names[name]: value for name, value in given.items()}
    fields = kind.model_fields
    # None stands for "not given" unless it is the field's default.
    values = {k: v for k, v in values.items() if v is not None or fields[k].default is None}
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(_at(place, describe(error, kind))) from error


def changed(settings: Kind, options: Mapping[str, Any], place: str) -> Kind:
    """Return the settings with some options replaced; None is ignored unless it is the default.

    Raises UserError, prefixed with `place`, that names the invalid option.
    """
    kind = type(settings)
    names = {field: name for name, field in options_of(kind).items()}
    optional = {name for field, name in names.items() if kind.model_fields[field].default is None}
    new = {name: value for name, value in options.items() if value is not None or name in optional}
    if not new:
        return settings
    # Options that are not set may depend on new ones, such as those that a preset fills in.
    known = {names[f]: value for f, value in settings.model_dump(exclude_unset=True).items()}
    return make(kind, known | new, place)


def distribute(
    given: Mapping[str, Any], place: str, kinds: Iterable[type[Settings]]
) -> list[dict[str, Any]]:
    """Split options by Settings class. Raises UserError for an option that no class has."""
    shares = []
    known: set[str] = set()
    for kind in kinds:
        names = set(options_of(kind))
        shares.append({name: value for name, value in given.items() if name in names})
        known |= names
    unknown = [name for name in given if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UserError(_at(place, f"unknown option {unknown[0]!r}{hint}"))
    return shares


def describe(error: ValidationError, kind: type[Settings] | None = None) -> str:
    """Return the first error as one line: the option or setting, the expected and the given value.

    With `kind`, options are named as on the command line.
    """
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    if kind is not None and place and place[0] in kind.model_fields:
        name = option_name(place[0], kind.model_fields[place[0]])
        place[0] = f"--{name.rstrip('_').replace('_', '-')}"
    where = ".".join(place)
    message = _message(first)
    return f"{where}: {message}" if where else message


def _message(fault: Any) -> str:
    bounds = {
        "greater_than_equal": ("of at least", "ge"),
        "greater_than": ("above", "gt"),
        "less_than_equal": ("of at most", "le"),
        "less_than": ("below", "lt"),
    }
    kind, context = fault["type"], fault.get("ctx", {})
    given = _shown(fault.get("input"))
    if kind == "extra_forbidden":
        return "unknown setting"
    if kind == "missing":
        return "required, but missing"
    if kind in bounds:
        words, name = bounds[kind]
        return f"expected a number {words} {context[name]:g}, found {given}"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return f"expected an integer, found {given}"
    if kind in ("float_parsing", "float_type", "finite_number"):
        return f"expected a number, found {given}"
    if kind == "literal_error":
        return f"expected {context['expected']}, found {given}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _shown(value: Any) -> str:
    """Return an untrusted value as bounded text: YAML aliases can expand to huge values."""
    try:
        return SHORT.repr(value)[:SHOWN]
    except ValueError:  # an integer with more digits than Python converts
        return type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _at(place: str, message: str) -> str:
    return f"{place}: {message}" if place else message


def with_options(*kinds: type[Settings]) -> Callable[[Function], Function]:
    """Return a decorator that appends these options to a function's docstring."""

    def document(function: Function) -> Function:
        if function.__doc__ is not None:
            lines = [line for kind in kinds for line in _lines(kind)]
            function.__doc__ = f"{inspect.cleandoc(function.__doc__)}\n\nOptions:\n" + "\n".join(
                f"    {line}" for line in lines
            )
        return function

    return document


def _lines(kind: type[Settings]) -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if field.is_required() or default is None else f" (default: {default!r})"
        found.append(f"{option_name(name, field)}: {field.description}{shown}")
    return found
