"""Generate the options of a command from Settings fields.

A command is a plain function. A parameter annotated with a Settings class stands for all fields of
that class, one option per field; `Annotated[Kind, only("a", "b")]` stands for some of them. The
Settings class checks the values, so that the command line, pipeline files and Python agree.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo

from capmix.cli.groups import OWN
from capmix.cli.message_options import MESSAGES, MessageSettings
from capmix.engine import messages
from capmix.pool.settings import SAMPLES
from capmix.settings.base import Settings, make, option_info, option_name, options_of

# The order in the help; other groups come between the two tuples.
FIRST_GROUPS = (
    "Data", "Model", "Texts", "Model and texts", "Recipe", "Sampling", "Schedule", SAMPLES,
)  # fmt: skip
LAST_GROUPS = ("Hardware", "Logging", "Resume and failures", MESSAGES)


@dataclass(frozen=True)
class Only:
    """Some fields of a Settings class, by name."""

    names: tuple[str, ...]


def only(*names: str) -> Only:
    """Select the fields of a Settings class that a command offers."""
    return Only(names)


POOL_HELP = (
    "A directory, URL or file (tars, images, parquet), a pattern such as `shards/*.tar` or "
    "`shards/{00000..00099}.tar`, or several of these; `embedded` is the demo pool (default: the "
    "work directory's pool)."
)
WORK_HELP = "Work directory (default: CAPMIX_WORK, or the one that contains the current directory)."
Pool = Annotated[list[str] | None, Parameter(help=POOL_HELP, show_default=False, negative="")]
Work = Annotated[str | None, Parameter(name="--work", help=WORK_HELP, show_default=False)]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function in one that has a cyclopts parameter for each option.

    The options of every command are added. The wrapper raises UserError, prefixed with the
    command's name, for a value that is out of range.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    kinds: dict[str, tuple[type[Settings], dict[str, str]]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind, names = _settings_of(hints[name])
        if kind is None:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        fields = {_python_name(kind, one): one for one in names}
        kinds[name] = kind, fields
        parameters += [_parameter(kind, field, python) for python, field in fields.items()]
    shared = {one: one for one in MessageSettings.model_fields}
    parameters += [_parameter(MessageSettings, one, one) for one in shared]

    place = function.__name__.strip("_").replace("_", "-")

    @functools.wraps(function)
    def run(*positional: Any, **given: Any) -> None:
        asked = {one: given.pop(one) for one in shared if one in given}
        form = make(MessageSettings, asked, place).form()
        if messages.current() is not None:  # None: called from Python, without messages
            messages.change(form)
        settings = {}
        for name, (kind, fields) in kinds.items():
            by_name = {field: option for option, field in options_of(kind).items()}
            values = {
                by_name[field]: given.pop(python)
                for python, field in fields.items()
                if python in given
            }
            settings[name] = make(kind, values, place)
        function(*positional, **given, **settings)

    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(parameters, key=lambda one: one.kind)
    )
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del run.__wrapped__
    return run


def _settings_of(hint: Any) -> tuple[type[Settings] | None, tuple[str, ...]]:
    """Return the Settings class of an annotation and the names of the fields that are options."""
    chosen: tuple[str, ...] | None = None
    if typing.get_origin(hint) is Annotated:
        hint, *about = typing.get_args(hint)
        chosen = next((one.names for one in about if isinstance(one, Only)), None)
    if not (isinstance(hint, type) and issubclass(hint, Settings)):
        return None, ()
    shown = (n for n, field in hint.model_fields.items() if option_info(field).on_command_line)
    return hint, tuple(shown) if chosen is None else chosen


def _python_name(kind: type[Settings], name: str) -> str:
    return option_name(name, kind.model_fields[name])


def _parameter(kind: type[Settings], name: str, python: str) -> inspect.Parameter:
    field = kind.model_fields[name]
    info = option_info(field)
    # Keywords of Python, such as from, have a trailing underscore.
    option = f"--{python.rstrip('_').replace('_', '-')}"
    annotation = _annotation(field, info.repeats)
    has_no = (annotation is bool and field.default is True) or annotation == bool | None
    about = Parameter(
        name=option,
        help=field.description,
        group=group_named(info.group),
        negative=f"--no-{python.replace('_', '-')}" if has_no else "",
        show_default=_shown_default(field),
        metavar=info.metavar,
        allow_leading_hyphen=annotation in (str, str | None, list[str] | None),
        required=field.is_required(),
    )
    default = inspect.Parameter.empty if field.is_required() else _default(field)
    return inspect.Parameter(
        python,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, about],
    )


@functools.cache
def group_named(name: str) -> Group:
    """Return the heading of a group; options without a group are among the command's own."""
    if not name:
        return OWN  # cyclopts 5 leaves options without a group out of the help
    places = {one: order for order, one in enumerate(FIRST_GROUPS)}
    places |= {one: 100 + order for order, one in enumerate(LAST_GROUPS)}
    return Group(name, sort_key=places.get(name, 50))


DryRun = Annotated[
    bool,
    Parameter(
        help="Estimate what would be processed, how long and how many bytes, and exit.",
        group=group_named(SAMPLES),
        negative="",
        show_default=False,
    ),
]


def _annotation(field: FieldInfo, repeats: bool) -> Any:
    """Return the type that cyclopts converts to; all but numbers, choices and flags stay text."""
    plain = [one for one in _members(field.annotation) if one is not type(None)]
    optional = not field.is_required() and field.default is None
    kind: Any = str
    if repeats:
        kind, optional = list[str], not field.is_required()
    elif len(plain) == 1 and (
        plain[0] in (bool, int, float) or typing.get_origin(plain[0]) is Literal
    ):
        kind = plain[0]
    if kind is str and not field.is_required() and field.default is not None:
        optional = not isinstance(field.default, str)
    return kind | None if optional else kind


def _members(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        yield from typing.get_args(annotation)
    else:
        yield annotation


def _default(field: FieldInfo) -> Any:
    """Return the default for cyclopts; None, for "not given", if a factory builds the default."""
    return field.default if field.default_factory is None else None


def _shown_default(field: FieldInfo) -> bool:
    is_silent = field.default is None or field.default is False or field.default == ""
    return field.default_factory is None and not is_silent
