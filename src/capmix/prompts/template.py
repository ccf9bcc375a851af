"""Prompt templates: text with fields that each sample fills with its own texts.

    Rewrite this alt text: {raw:256}[[ The image shows: {blip2}.]]

{NAME}           the text of a source: raw, or the name of a captioner's or rewriter's output
{field:NAME}     a field of the sample's JSON
{NAME:N}         at most N tokens of it (of the model; without N, DEFAULT_TOKENS)
[[ ... ]]        left out if one of its fields is missing or empty
{{  }}           a literal brace
{[[}  {]]}       literal double brackets

A field outside [[ ]] is required. The texts of fields are data: they are escaped, and never parsed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from capmix.errors import UserError
from capmix.prompts.escape import Escape
from capmix.prompts.truncation import CHARACTERS_PER_TOKEN, Truncate, by_pieces
from capmix.settings.printable import printable

FORMAT = 1  # raised when the same template and texts give another prompt
OF_METADATA = "field:"
DEFAULT_TOKENS = 1024
MAX_TOKENS = 32_768
MAX_LENGTH = 10_000  # characters of a template
MAX_FIELDS = 64
SHOWN = 30  # characters of a template that an error quotes
FIELD = re.compile(r"\{((?:field:[A-Za-z0-9_.-]{1,64})|[a-z][a-z0-9_]{0,62})(?::([0-9]{1,9}))?\}")
MARK = re.compile(r"\{\{|\}\}|\{\[\[\}|\{\]\]\}|\[\[|\]\]|\{|\}")
LITERAL = {"{{": "{", "}}": "}", "{[[}": "[[", "{]]}": "]]"}
LIKELY = re.compile(r"\{\s*[A-Za-z]")
EXPECTED = "expected {NAME}, {NAME:TOKENS} or {field:NAME}, with {{ and }} for literal braces"


@dataclass(frozen=True)
class TemplateField:
    """A field: `name` is the name of a text source, or `field:NAME`; at most `tokens` are used."""

    name: str
    tokens: int = DEFAULT_TOKENS


@dataclass(frozen=True)
class TemplatePart:
    """Texts and fields in order. An `is_optional` part is left out if one of its fields is."""

    pieces: tuple[str | TemplateField, ...]
    is_optional: bool = False

    @property
    def fields(self) -> tuple[TemplateField, ...]:
        return tuple(one for one in self.pieces if isinstance(one, TemplateField))


@dataclass(frozen=True)
class Template:
    """A parsed template."""

    parts: tuple[TemplatePart, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all fields, each once, in order."""
        return tuple(dict.fromkeys(one.name for part in self.parts for one in part.fields))

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the fields without which there is no prompt, each once, in order."""
        found = [one for part in self.parts if not part.is_optional for one in part.fields]
        return tuple(dict.fromkeys(one.name for one in found))


@dataclass(frozen=True)
class Rendered:
    """A prompt, or None and the names of the required fields that are `missing`."""

    prompt: str | None
    missing: tuple[str, ...] = ()


def is_template(text: str) -> bool:
    """Return whether a prompt is meant as a template: it has a brace before a letter."""
    return bool(LIKELY.search(text))


def parse_template(text: str, what: str) -> Template:
    """Parse a template. `what` names it in errors, such as `--prompt`.

    Raises UserError, with the position, for a syntax error or a template that is too long.
    """
    if len(text) > MAX_LENGTH:
        raise UserError(f"{what}: {len(text)} characters; a template has at most {MAX_LENGTH}")
    parts, count = [], 0
    for part in _parts(text, what):
        count += len(part.fields)
        parts.append(part)
    if count > MAX_FIELDS:
        raise UserError(f"{what}: {count} fields; a template has at most {MAX_FIELDS}")
    return Template(tuple(parts))


def render(
    template: Template,
    texts: Mapping[str, str | None],
    truncate: Truncate = by_pieces,
    escape: Escape | None = None,
) -> Rendered:
    """Return the prompt of one sample, or the required fields that are missing.

    `texts` has the texts by the names of fields; None, and a text that is empty after escaping, are
    missing. `truncate` cuts a text to a number of tokens.
    """
    escape = escape or Escape()
    values = {
        one: _value(texts.get(one.name), one.tokens, truncate, escape)
        for part in template.parts
        for one in part.fields
    }
    given = {one.name for one, value in values.items() if value}
    missing = tuple(name for name in template.required if name not in given)
    if missing:
        return Rendered(None, missing)
    shown = [part for part in template.parts if all(values[one] for one in part.fields)]
    pieces = [piece for part in shown for piece in part.pieces]
    return Rendered("".join(one if isinstance(one, str) else values[one] for one in pieces))


def _value(text: str | None, tokens: int, truncate: Truncate, escape: Escape) -> str:
    """Return the text of a field, escaped and cut."""
    if not text:
        return ""
    # Escaped before, because the cut counts the tokens that the model gets, and after it, because
    # the end of a text may begin a token that the template would complete.
    return escape(truncate(escape(text[: tokens * CHARACTERS_PER_TOKEN]), tokens))


def _parts(text: str, what: str) -> Iterator[TemplatePart]:
    pieces: list[str | TemplateField] = []
    opened: int | None = None  # the position of the optional part
    place = 0
    while place < len(text):
        found = MARK.search(text, place)
        if found is None or found.start() > place:
            end = len(text) if found is None else found.start()
            pieces.append(text[place:end])
            place = end
            continue
        mark, start = found[0], found.start()
        place = found.end()
        if mark in LITERAL:
            pieces.append(LITERAL[mark])
        elif mark == "{":
            field, place = _field(text, start, what)
            pieces.append(field)
        elif mark == "[[" and opened is None:
            yield TemplatePart(tuple(pieces))
            pieces, opened = [], start
        elif mark == "]]" and opened is not None:
            yield _optional(pieces, text, opened, what)
            pieces, opened = [], None
        else:
            raise _error(text, start, what, _problem(mark))
    if opened is not None:
        raise _error(text, opened, what, "the part has no end; add ]]")
    yield TemplatePart(tuple(pieces))


def _field(text: str, start: int, what: str) -> tuple[TemplateField, int]:
    found = FIELD.match(text, start)
    if found is None:
        raise _error(text, start, what, EXPECTED)
    name, number = found[1], found[2]
    tokens = DEFAULT_TOKENS if number is None else int(number)
    if not 1 <= tokens <= MAX_TOKENS:
        raise _error(text, start, what, f"expected 1 to {MAX_TOKENS} tokens")
    return TemplateField(name, tokens), found.end()


def _optional(pieces: list[str | TemplateField], text: str, start: int, what: str) -> TemplatePart:
    part = TemplatePart(tuple(pieces), True)
    if not part.fields:
        raise _error(
            text, start, what, "the part has no field; write {[[} and {]]} for literal brackets"
        )
    return part


def _problem(mark: str) -> str:
    if mark == "[[":
        return "a part cannot contain another one; close it with ]] first"
    if mark == "]]":
        return "no part is open; write {]]} for literal brackets"
    return "no field is open; write }} for a literal brace"


def _error(text: str, start: int, what: str, problem: str) -> UserError:
    shown = printable(text[start : start + SHOWN])
    return UserError(f"{what}, character {start + 1} ({shown!r}): {problem}")
