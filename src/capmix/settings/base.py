"""Every option is written once: a field of a Settings class with type, default, range and help.

The command line, pipeline files, Python keywords, `--help` and the tables of docs/commands are made
from these fields.
"""

import difflib
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from capmix.errors import UserError

Kind = TypeVar("Kind", bound="Settings")
Function = TypeVar("Function", bound=Callable[..., Any])
# Aliases let a few lines of YAML stand for lists that fill the memory when they are written out.
SHORT = reprlib.Repr()
SHORT.maxlevel = 2
SHOWN = 80  # characters of a bad value in an error


class Settings(BaseModel):
    """Immutable options. Unknown names and values out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class OptionInfo:
    """How a field is shown: its group in `--help`, another name than the field's, what stands for
    the value, whether the option may be repeated, and whether it belongs to the command line."""

    group: str = ""
    name: str | None = None
    metavar: str | None = None
    repeats: bool = False
    on_command_line: bool = True

    def __call__(self, schema: dict[str, Any]) -> None:
        """The JSON Schema of a pipeline file does not show it."""


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
    """A field of a Settings class; `bounds` are pydantic's, such as ge=1 or min_length=1."""
    info = OptionInfo(group, name, metavar, repeats, on_command_line)
    if callable(default):
        return Field(default_factory=default, description=help, json_schema_extra=info, **bounds)
    return Field(default, description=help, json_schema_extra=info, **bounds)


def option_info(field: FieldInfo) -> OptionInfo:
    """What `option` noted of a field; the defaults for a plain one."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, OptionInfo) else OptionInfo()


def option_name(name: str, field: FieldInfo) -> str:
    """What Python keywords and, with dashes, the command line call a field."""
    return option_info(field).name or name


def options_of(kind: type[Settings]) -> dict[str, str]:
    """Field names by option names."""
    return {option_name(name, field): name for name, field in kind.model_fields.items()}


def defaults_of(kind: type[Settings]) -> dict[str, Any]:
    """Each field's default, by field name."""
    fields = kind.model_fields.items()
    return {name: field.get_default(call_default_factory=True) for name, field in fields}


def make(kind: type[Kind], given: Mapping[str, Any], place: str = "") -> Kind:
    """The settings that `given` options describe, by option name; None stands for "not given".

    Raises UserError that begins with `place` and names the option.
    """
    names = options_of(kind)
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(_at(place, f"no option {unknown[0]!r}{did_you_mean(unknown[0], names)}"))
    values = {names[name]: value for name, value in given.items()}
    fields = kind.model_fields
    # None is how "not given" arrives where a field has no such value.
    values = {k: v for k, v in values.items() if v is not None or fields[k].default is None}
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(_at(place, describe(error, kind))) from error


def changed(settings: Kind, options: Mapping[str, Any], place: str) -> Kind:
    """The settings with some options replaced; None replaces only what may be None. Raises
    UserError."""
    kind = type(settings)
    names = {field: name for name, field in options_of(kind).items()}
    optional = {name for field, name in names.items() if kind.model_fields[field].default is None}
    new = {name: value for name, value in options.items() if value is not None or name in optional}
    if not new:
        return settings
    known = {names[field]: value for field, value in settings.model_dump().items()}
    return make(kind, known | new, place)


def distribute(
    given: Mapping[str, Any], place: str, kinds: Iterable[type[Settings]]
) -> list[dict[str, Any]]:
    """The options of each kind. Raises UserError for one that none of them has."""
    shares = []
    known: set[str] = set()
    for kind in kinds:
        names = set(options_of(kind))
        shares.append({name: value for name, value in given.items() if name in names})
        known |= names
    unknown = [name for name in given if name not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known)
        raise UserError(_at(place, f"no option {unknown[0]!r}{hint}"))
    return shares


def describe(error: ValidationError, kind: type[Settings] | None = None) -> str:
    """The first fault as one line: which option or setting, what was expected, what was given.

    Options are named as on the command line where `kind` is given.
    """
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    if kind is not None and place and place[0] in kind.model_fields:
        name = option_name(place[0], kind.model_fields[place[0]])
        place[0] = f"--{name.replace('_', '-')}"
    where = ".".join(place)
    message = _message(first)
    return f"{where}: {message}" if where else message


def _message(fault: Any) -> str:
    bounds = {
        "greater_than_equal": ("of at least", "ge"),
        "greater_than": ("over", "gt"),
        "less_than_equal": ("of at most", "le"),
        "less_than": ("below", "lt"),
    }
    kind, context = fault["type"], fault.get("ctx", {})
    given = _shown(fault.get("input"))
    if kind == "extra_forbidden":
        return "unknown setting"
    if kind == "missing":
        return "missing; give it a value"
    if kind in bounds:
        words, name = bounds[kind]
        return f"expected a number {words} {context[name]:g}, found {given}"
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return f"expected a whole number, found {given}"
    if kind in ("float_parsing", "float_type", "finite_number"):
        return f"expected a number, found {given}"
    if kind == "literal_error":
        return f"expected {context['expected']}, found {given}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _shown(value: Any) -> str:
    """A value that others wrote, bounded; aliases let a few lines of YAML stand for very much."""
    try:
        return SHORT.repr(value)[:SHOWN]
    except ValueError:  # a number of too many digits
        return type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _at(place: str, message: str) -> str:
    return f"{place}: {message}" if place else message


def with_options(*kinds: type[Settings]) -> Callable[[Function], Function]:
    """A decorator that lists the options of these kinds in a function's docstring."""

    def document(function: Function) -> Function:
        if function.__doc__ is not None:
            lines = [line for kind in kinds for line in _lines(kind)]
            function.__doc__ = f"{function.__doc__.rstrip()}\n\n        Options:\n" + "\n".join(
                f"            {line}" for line in lines
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
