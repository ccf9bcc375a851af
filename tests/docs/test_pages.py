"""The pages of the docs agree with the code and with each other: options, links, the example."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import PAGES, ROOT, name_of, read_page

from capmix.cli.reference import pages, with_options
from capmix.pipeline.reference import with_keys

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", pages(DOCS))
def test_the_options_of_a_page_are_those_of_the_command(name: str) -> None:
    """`python tools/build_docs.py` writes them."""
    page = pages(DOCS)[name].read_text("utf-8")
    assert with_options(page, name) == page
    assert f"[{name}]({name}.md)" in (DOCS / "commands/README.md").read_text("utf-8")


def test_the_keys_of_the_pipeline_page_are_those_of_the_settings() -> None:
    """`python tools/build_docs.py` writes them."""
    page = (DOCS / "reference/pipeline.md").read_text("utf-8")
    assert with_keys(page) == page


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"


def test_the_example_of_a_model_of_ones_own_prints_what_its_page_says(tmp_path: Path) -> None:
    page = DOCS / "adding-a-model.md"
    for block in read_page(page).blocks:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, "utf-8")
    assert {path.name for path in tmp_path.iterdir()} >= {
        "colour_captioner.py", "colour_scorer.py", "use_them.py"
    }  # fmt: skip
    command = [sys.executable, "use_them.py"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    printed = [line.strip() for line in first.stdout.splitlines()]
    assert printed
    assert all(line in page.read_text("utf-8") for line in printed)
