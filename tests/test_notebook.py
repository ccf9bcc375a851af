"""The notebook in examples/ runs, and docs/notebook.md shows its output."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NUMBER = re.compile(r"[+-]?\d+\.\d+")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    found = importlib.util.spec_from_file_location(
        "build_notebook", ROOT / "tools/build_notebook.py"
    )
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def words(page: str) -> list[str]:
    """Remove numbers, which are rounded differently on other processors, and spaces."""
    return NUMBER.sub("#", page).split()


def test_the_notebook_runs_and_its_page_is_current(tool: ModuleType, tmp_path: Path) -> None:
    """`python tools/build_notebook.py` writes the page."""
    ran = tool.run(tool.NOTEBOOK, tmp_path)
    made, known = tool.as_markdown(ran), tool.PAGE.read_text("utf-8")
    assert words(made) == words(known)
    for one, other in zip(NUMBER.findall(made), NUMBER.findall(known), strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.05, abs=0.06)
    kept = {"photos", "start", "work"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_notebook_is_kept_without_outputs_and_paths(tool: ModuleType) -> None:
    notebook = nbformat.read(tool.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 10
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []
    for path in (tool.NOTEBOOK, tool.PAGE):
        text = path.read_text("utf-8")
        assert "/home/" not in text
        assert "/tmp/" not in text
        assert len(text) < 20_000
    assert (tool.PAGE.parent / "notebook.png").stat().st_size < 100_000
