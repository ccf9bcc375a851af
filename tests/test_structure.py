"""Code structure: no import cycles, four files in the root, unique class names, one layout file."""

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import grimp
import pytest

SOURCE = Path(__file__).parent.parent / "src/capmix"
FILES = sorted(SOURCE.rglob("*.py"))


def circles(arrows: Mapping[str, set[str]]) -> list[set[str]]:
    """Return strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[set[str]] = []

    def visit(one: str) -> None:
        index[one] = low[one] = len(index)
        path.append(one)
        for other in arrows.get(one, ()):
            if other not in index:
                visit(other)
                low[one] = min(low[one], low[other])
            elif other in path:
                low[one] = min(low[one], index[other])
        if low[one] == index[one]:
            group: set[str] = set()
            while one not in group:
                group.add(path.pop())
            if len(group) > 1:
                found.append(group)

    for one in list(arrows):
        if one not in index:
            visit(one)
    return found


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    graph = grimp.build_graph("capmix", include_external_packages=False)
    return {one: graph.find_modules_directly_imported_by(one) for one in graph.modules}


def test_the_finder_of_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_files_import_each_other(imports: dict[str, set[str]]) -> None:
    """Imports inside functions count as well."""
    assert circles(imports) == []


def test_no_folders_import_each_other(imports: dict[str, set[str]]) -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    for one, others in imports.items():
        for other in others:
            here, there = (".".join(name.split(".")[:2]) for name in (one, other))
            if here != there:
                folders[here].add(there)
    assert circles(folders) == []


def test_the_root_has_at_most_four_files() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= 4


def test_a_public_class_name_is_used_once() -> None:
    places = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(SOURCE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_folders_of_a_work_directory_are_named_in_one_place() -> None:
    """No string in another file begins with such a folder's name and a slash."""
    from capmix.storage import layout

    folders = [
        value
        for name, value in vars(layout).items()
        if name.isupper() and isinstance(value, str) and value not in (layout.ABOUT, layout.RAW)
    ]
    assert len(folders) > 15
    starts = tuple(f"{folder}/" for folder in folders)
    found = []
    for path in FILES:
        if path.name == "layout.py":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        found += [
            f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value[:40]!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docs
            and node.value.startswith(starts)
        ]
    assert found == []


def test_only_the_command_line_prints() -> None:
    printing = [
        str(path.relative_to(SOURCE))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert {path for path in printing if not path.startswith("cli/")} == set()
