"""The tests and scripts that a page of the docs names in its tables, and whether they exist.

A table whose last column is `test` or `test or benchmark` names evidence: each of its rows names at
least one existing test, as `tests/path/test_x.py::test_name`, or script of benchmarks/ or fuzz/.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADS = ("test", "test or benchmark")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
SCRIPT = re.compile(r"\b((?:benchmarks|fuzz)/\w+\.py)\b")


def tables(text: str) -> Iterator[tuple[list[str], list[tuple[int, list[str]]]]]:
    """Yield the header of each Markdown table, and its rows with their line numbers."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if at and re.fullmatch(r"\|[\s|:-]+\|", line):
            rows = []
            for number in range(at + 1, len(lines)):
                if not lines[number].startswith("|"):
                    break
                rows.append((number + 1, _cells(lines[number])))
            yield _cells(lines[at - 1]), rows


def faults_of(text: str) -> list[str]:
    """Return a line for each row without evidence, and for each test or script that is missing."""
    faults = []
    for head, rows in tables(text):
        if head[-1] in HEADS:
            for number, cells in rows:
                if len(cells) != len(head):
                    faults.append(f"line {number}: {len(cells)} cells under {len(head)} columns")
                elif not TEST.search(cells[-1]) and not SCRIPT.search(cells[-1]):
                    faults.append(f"line {number}: {cells[0]}: names no {head[-1]}")
    named = TEST.findall(text)
    faults += [f"{file}::{name} does not exist" for file, name in named if name not in _tests(file)]
    scripts = sorted(set(SCRIPT.findall(text)))
    faults += [f"{file} does not exist" for file in scripts if not (ROOT / file).is_file()]
    if text.count("::test_") != len(named):
        faults.append("a test is not written as `tests/path/test_x.py::test_name`")
    return faults


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


@cache
def _tests(file: str) -> set[str]:
    """Return the names of the functions that a file of tests defines."""
    path = ROOT / file
    body = ast.parse(path.read_text("utf-8")).body if path.is_file() else []
    return {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
