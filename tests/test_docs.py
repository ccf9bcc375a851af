"""The docs are true: getting started runs, the example model works, every option has its line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capmix.cli.reference import pages, with_options

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


def environment(folder: Path) -> dict[str, str]:
    """With `capmix` on the path, whichever way it is installed."""
    command = folder / "bin/capmix"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m capmix "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_every_command_of_getting_started_runs(tmp_path: Path) -> None:
    """In order, in one empty folder; what it says of the numbers holds."""
    text = (DOCS / "getting-started.md").read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert len(blocks) == 6
    folder = tmp_path / "empty"
    folder.mkdir()
    found = subprocess.run(
        ["sh", "-ex"],
        input="\n".join(blocks),
        cwd=folder,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert (folder / "report.html").stat().st_size > 5_000_000
    assert (folder / "figures/temperature-trigrams.pdf").exists()
    assert (folder / "figures/fractions.png").exists()
    rows: dict[str, list[str]] = {}
    for line in found.stdout.splitlines():  # the first table is that of `capmix measure`
        if line.strip():
            rows.setdefault(line.split()[0], line.split())
    noun_share, similarity = (
        {source: float(rows[source][i].rstrip("%")) for source in ("raw", "mini", "mini_hot")}
        for i in (8, 9)
    )
    assert noun_share["raw"] < noun_share["mini"]
    assert similarity["raw"] < similarity["mini_hot"] < similarity["mini"]


def test_the_example_of_a_model_of_ones_own_runs(tmp_path: Path) -> None:
    text = (DOCS / "adding-a-model.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        name = block.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    assert {path.name for path in tmp_path.iterdir()} == {
        "colour_captioner.py", "colour_scorer.py", "use_them.py"
    }  # fmt: skip
    command = [sys.executable, "use_them.py"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    printed = [line.strip() for line in first.stdout.splitlines()]
    assert all(line in text for line in printed)


@pytest.mark.parametrize("name", pages(DOCS))
def test_the_options_of_a_page_are_those_of_the_command(name: str) -> None:
    """`python tools/build_docs.py` writes them."""
    page = pages(DOCS)[name].read_text("utf-8")
    assert with_options(page, name) == page
    assert f"[{name}]({name}.md)" in (DOCS / "commands/README.md").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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
