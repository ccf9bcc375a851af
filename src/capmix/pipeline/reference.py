"""The keys of the pipeline file as Markdown, for docs/reference/pipeline.md."""

import types
import typing
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from capmix.pipeline.config import STAGES, Pipeline
from capmix.settings.generated import with_block

BEGIN = "<!-- keys: written by tools/build_docs.py -->"
END = "<!-- end of keys -->"
TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "mapping"}


def keys_tables() -> str:
    """A table of the keys at the top of the file, then one table per section."""
    fields = {field.alias or name: field for name, field in Pipeline.model_fields.items()}
    top = {name: field for name, field in fields.items() if name not in (*STAGES, "engine")}
    tables = ["## Top level\n\n" + _table(top)]
    for name in ("engine", *STAGES):
        model, form = _section(fields[name])
        about = " ".join((model.__doc__ or "").partition("\n\n")[0].split())
        tables.append(f"## `{name}`\n\n{form}{about}\n\n{_table(model.model_fields)}")
    return "\n\n".join(tables)


def with_keys(page: str) -> str:
    """Return the page with its block of keys replaced. Raises ValueError if it has none."""
    return with_block(page, BEGIN, END, keys_tables())


def _section(field: FieldInfo) -> tuple[type[BaseModel], str]:
    """The settings of a section, and a sentence if it is a list or a mapping of these."""
    kind = field.annotation
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return members[0], "A list; a single entry may stand without the dash. "
    if origin is dict:
        return members[1], "A mapping from source name to these keys. "
    found = next((one for one in members if one is not type(None)), kind)
    assert isinstance(found, type)
    assert issubclass(found, BaseModel)
    return found, ""


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = ["| key | type | default | meaning |", "|--|--|--|--|"]
    for key, field in fields.items():
        name = field.alias or key
        about = (field.description or "").replace("|", "\\|").replace("\n", " ")
        rows.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {about} |")
    return "\n".join(rows)


def _type(kind: Any) -> str:
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(members[0])
    if origin is Literal:
        return " \\| ".join(f"`{one}`" for one in members)
    if origin in (list, tuple):
        return "list" if not members else f"list of {_type(members[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(m) for m in members if m is not type(None)))
    return TYPES.get(origin or kind, "mapping")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ([], {}, ""):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"
