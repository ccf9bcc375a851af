"""Run examples/notebook.ipynb in an empty folder and write docs/notebook.md with its outputs.

python tools/build_notebook.py      writes the page and its picture (half a minute on 2 cores)

The notebook is stored without outputs; tests/test_notebook.py compares the page with a run. The
output of a cell with `picture` in its metadata is rendered by Debian's Chromium.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
NOTEBOOK, PAGE = ROOT / "examples/notebook.ipynb", ROOT / "docs/notebook.md"
CELL_TIMEOUT = 600  # seconds
HEAD = "<!-- written by tools/build_notebook.py from examples/notebook.ipynb -->\n"


def run(notebook: Path, folder: Path) -> Any:
    """Run the notebook in `folder` with this Python, and return it with its outputs.

    Raises nbclient's CellExecutionError if a cell fails.
    """
    cells = nbformat.read(notebook, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    same_modules = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    client = NotebookClient(cells, timeout=CELL_TIMEOUT, resources=place)
    client.execute(env=os.environ | same_modules)
    return cells


def as_markdown(notebook: Any) -> str:
    """Convert a notebook to Markdown: Markdown cells unchanged, code cells with their output."""
    return HEAD + "\n" + "\n\n".join(_cell(cell) for cell in notebook.cells) + "\n"


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return str(cell.source)
    shown = "".join(_text(output) for output in cell.outputs).rstrip()
    parts = [f"```python\n{cell.source}\n```"]
    if shown:
        parts.append(f"```text\n{shown}\n```")
    if "picture" in cell.metadata:
        parts.append(f"![Samples of a subset in a notebook]({cell.metadata['picture']})")
    return "\n\n".join(parts)


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text) if output.name == "stdout" else ""
    return f"{output.data['text/plain']}\n"


def draw(html: str, picture: Path) -> None:
    """Render `html` in a browser and write a PNG file."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 940, "height": 300})
        page.set_content(f"<body style='font-family: sans-serif'>{html}</body>")
        page.screenshot(path=str(picture), full_page=True)
        browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(NOTEBOOK, Path(folder))
    PAGE.write_text(as_markdown(notebook), "utf-8")
    for cell in notebook.cells:
        if "picture" in cell.metadata:
            draw(cell.outputs[0].data["text/html"], PAGE.parent / cell.metadata["picture"])
    print(PAGE)


if __name__ == "__main__":
    main()
