"""Text templates of clauses, for example `sks style, {lower(blip2)}`.

Braces contain an expression of recipes, in which a source stands for its text; write {{ and }} for
literal braces. A template is translated to one SQL expression, so functions, limits and nulls work
as in conditions: one null makes the whole text null.
"""

import re
from collections.abc import Callable, Iterator, Sequence

NAME = re.compile(r"[A-Za-z_]\w*")
QUOTES = "'\""
QUOTED = re.compile(r"""('[^']*'|"[^"]*")""")


def pieces(template: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a template in order, and whether each is an expression.

    In literal text, doubled braces become single ones. Raises ValueError for unbalanced braces and
    for empty expressions.
    """
    plain, at = "", 0
    while at < len(template):
        letter = template[at]
        if template.startswith(("{{", "}}"), at):
            plain, at = plain + letter, at + 2
        elif letter == "{":
            end = _end(template, at)
            if not template[at + 1 : end].strip():
                raise ValueError(f"text {template!r}: empty expression between {{ and }}")
            if plain:
                yield plain, False
            yield template[at + 1 : end], True
            plain, at = "", end + 1
        elif letter == "}":
            raise ValueError(f"text {template!r}: unmatched }}; write }}}} for a literal brace")
        else:
            plain, at = plain + letter, at + 1
    if plain:
        yield plain, False


def _end(template: str, start: int) -> int:
    """Return where the brace at `start` is closed, ignoring braces inside quotes."""
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
    raise ValueError(f"text {template!r}: unclosed {{; write {{{{ for a literal brace")


def filled(template: str, fill: Callable[[str], str], parameters: set[str]) -> str:
    """Return the template with `fill` applied to its expressions outside of quotes.

    `fill` replaces {P} by the value of parameter P. An expression that is only the name of a
    parameter is also replaced.
    """
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
    """Apply `fill` to every other part; the parts in between are quoted."""
    for number, part in enumerate(parts):
        yield part if number % 2 else fill(part)


def expressions(template: str) -> list[str]:
    """Return the expressions of a template."""
    return [text for text, is_expression in pieces(template) if is_expression]


def as_sql(template: str) -> str:
    """Return a template as one SQL expression. Its expressions must be valid by themselves."""
    found = []
    for text, is_expression in pieces(template):
        quoted = text.replace("'", "''")
        found.append(f"({text}\n)::VARCHAR" if is_expression else f"'{quoted}'")
    return " || ".join(found) or "''"
