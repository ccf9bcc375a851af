"""Texts that a clause composes: `sks style, {lower(blip2)}`.

What is in braces is an expression of recipes, in which a source stands for its text; {{ and }} are
braces. A template becomes one SQL expression, so that functions, bounds and nulls are those of
conditions: one null makes the whole text null.
"""

import re
from collections.abc import Callable, Iterator, Sequence

NAME = re.compile(r"[A-Za-z_]\w*")
QUOTES = "'\""
QUOTED = re.compile(r"""('[^']*'|"[^"]*")""")


def pieces(template: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a template in order, and whether each is an expression; braces of plain ones
    are single. Raises ValueError for a brace without its other, and
    for nothing between two."""
    plain, at = "", 0
    while at < len(template):
        letter = template[at]
        if template.startswith(("{{", "}}"), at):
            plain, at = plain + letter, at + 2
        elif letter == "{":
            end = _end(template, at)
            if not template[at + 1 : end].strip():
                raise ValueError(f"text {template!r}: nothing between {{ and }}")
            if plain:
                yield plain, False
            yield template[at + 1 : end], True
            plain, at = "", end + 1
        elif letter == "}":
            raise ValueError(f"text {template!r}: a single }}; write }}}}")
        else:
            plain, at = plain + letter, at + 1
    if plain:
        yield plain, False


def _end(template: str, start: int) -> int:
    """Where the brace at `start` is closed; braces between quotes do not count."""
    depth, quote = 0, ""
    for at in range(start, len(template)):
        letter = template[at]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in QUOTES:
            quote = letter
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                return at
    raise ValueError(f"text {template!r}: a {{ that is not closed; write {{{{ for a brace")


def filled(template: str, fill: Callable[[str], str], parameters: set[str]) -> str:
    """The template with `fill` applied to its expressions, in which {P} stands for the parameter P
    but for what is between quotes; an expression that is a parameter's name is one too."""
    found = ""
    for text, is_expression in pieces(template):
        if not is_expression:
            found += text.replace("{", "{{").replace("}", "}}")
        elif text.strip() in parameters:
            found += "{" + fill("{" + text.strip() + "}") + "}"
        else:
            found += "{" + "".join(_filled(QUOTED.split(text), fill)) + "}"
    return found


def _filled(parts: Sequence[str], fill: Callable[[str], str]) -> Iterator[str]:
    """Every second one of the parts is between quotes."""
    for number, part in enumerate(parts):
        yield part if number % 2 else fill(part)


def expressions(template: str) -> list[str]:
    """What is in the braces of a template."""
    return [text for text, is_expression in pieces(template) if is_expression]


def as_sql(template: str) -> str:
    """The SQL expression that a template stands for; each of its expressions is one by itself."""
    found = []
    for text, is_expression in pieces(template):
        quoted = text.replace("'", "''")
        found.append(f"({text}\n)::VARCHAR" if is_expression else f"'{quoted}'")
    return " || ".join(found) or "''"
