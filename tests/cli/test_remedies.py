"""The commands and options that errors and docs recommend exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from capmix.cli.main import COMMANDS, make_app
from capmix.cli.reference import pages

ROOT = Path(__file__).parents[2]
CALL = re.compile(r"`capmix ([a-z]+)([^`]*)`((?: --[a-z-]+)*)")
OPTION = re.compile(r"(?<=\s)--[a-z][a-z-]*")


@cache
def options(command: str) -> frozenset[str]:
    found = make_app()[command].assemble_argument_collection()
    return frozenset(name for one in found for name in one.names) | {"--help", "--version"}


def texts(source: str) -> Iterator[str]:
    """Yield the strings of a module; constants of the module are filled in, other values are X."""
    module = ast.parse(source)
    constants = {
        one.targets[0].id: one.value.value
        for one in module.body
        if isinstance(one, ast.Assign)
        and isinstance(one.targets[0], ast.Name)
        and isinstance(one.value, ast.Constant)
    }

    def text(part: ast.expr) -> str:
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            return str(constants.get(part.value.id, "X"))
        return str(part.value) if isinstance(part, ast.Constant) else "X"

    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(text, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_command_in_a_message_has_the_options_that_are_given() -> None:
    wrong, seen = [], 0
    commands = {one.name for one in COMMANDS}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for text in texts(path.read_text("utf-8")):
            for name, inside, behind in CALL.findall(text):
                seen += 1
                given = OPTION.findall(inside + behind)
                if name not in commands or not options(name).issuperset(given):
                    wrong.append(f"{path.relative_to(ROOT)}: capmix {name}{inside}{behind}")
    assert not wrong, "\n".join(wrong)
    assert seen > 50


# The errors on the page of `models` are those of the commands that load a model.
@pytest.mark.parametrize("name", [one.name for one in COMMANDS if one.name != "models"])
def test_every_option_in_the_errors_of_a_page_exists(name: str) -> None:
    page = pages(ROOT / "docs")[name].read_text("utf-8")
    _, _, errors = page.partition("\n## Errors\n")
    rows = [row for row in errors.split("\n## ")[0].splitlines() if row.startswith("| ")]
    advice = [row.rstrip(" |").rpartition(" | ")[2] for row in rows]
    given = {one for text in advice for one in re.findall(r"`(--[a-z][a-z-]*)", text)}
    assert given - options(name) == set()
