"""Write the options of each command as Markdown, for the pages of docs/commands."""

import typing
from pathlib import Path
from typing import Any, Literal

from capmix.cli.main import COMMANDS, make_app
from capmix.cli.message_options import MESSAGES
from capmix.settings.generated import with_block

BEGIN = "<!-- options: written by tools/build_docs.py -->"
END = "<!-- end of options -->"
WORDS = {str: "TEXT", int: "INT", float: "FLOAT"}


def options_table(command: str) -> str:
    """Return a row per argument and option, in the order of `--help`.

    The options that every command has are left out.
    """
    found = [
        one for one in make_app()[command].assemble_argument_collection() if _group(one) != MESSAGES
    ]
    found.sort(key=_place)
    rows = ["| option | default | meaning |", "|--|--|--|"]
    for one in found:
        about = (one.parameter.help or "").replace("|", "\\|")
        rows.append(f"| `{_name(one)}` | {_default(one)} | {about} |")
    return "\n".join(rows) if len(rows) > 2 else "This command has no options."


def with_options(page: str, command: str) -> str:
    """Return the page with its block of options replaced. Raises ValueError if it has none."""
    return with_block(page, BEGIN, END, options_table(command))


def pages(docs: Path) -> dict[str, Path]:
    """Return the path of each command's page."""
    return {one.name: docs / "commands" / f"{one.name}.md" for one in COMMANDS}


def _group(argument: Any) -> str:
    groups = argument.parameter.group
    return str(groups[0].name) if groups else ""


def _place(argument: Any) -> int:
    """Sort key: arguments first, then options without a group, then the groups in their order."""
    groups = argument.parameter.group
    return -1 if argument.index is not None else groups[0].sort_key if groups else 0


def _name(argument: Any) -> str:
    names = [name for name in argument.names if name.startswith("--")]
    if argument.index is not None:
        return str(argument.names[0].lstrip("-").upper())
    kind = _kind(argument.hint)
    if kind is bool:
        return " / ".join(names)
    return f"{names[0]} {argument.parameter.metavar or _word(kind, names[0])}"


def _word(kind: Any, name: str) -> str:
    if typing.get_origin(kind) is Literal:
        return "\\|".join(typing.get_args(kind))
    return WORDS.get(kind, name.rpartition("-")[2].upper())


def _kind(hint: Any) -> Any:
    members = [one for one in typing.get_args(hint) if one is not type(None)]
    is_optional = len(members) < len(typing.get_args(hint)) and typing.get_origin(hint) is not list
    return members[0] if is_optional and len(members) == 1 else hint


def _default(argument: Any) -> str:
    if argument.required:
        return "required"
    default = argument.field_info.default
    if default is False:
        return "off"
    is_silent = argument.parameter.show_default is False or default is None
    return "" if is_silent else f"`{default}`"
