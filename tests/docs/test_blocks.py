"""Every code block of the docs is parsed by `make test` and run by `make test-docs`."""

import json
import shlex
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from blocks import PAGES, Block, Page, name_of, read_page
from command_line import check_call
from cyclopts import CycloptsError
from runner import Ran, new_folder, run_page
from shell import capmix_calls

from capmix.errors import UserError
from capmix.mix.recipe import load_recipe
from capmix.pipeline.config import SETTINGS, STAGES, load_pipeline

# Pages whose reader begins in an empty folder; the others have that of world.write_folder.
EMPTY_FOLDER = {"docs/getting-started.md"}
# Pages that are written by a tool out of what ran.
GENERATED = {"docs/notebook.md"}


def checked(page: Path, check: Callable[[Block], None]) -> None:
    """Raise one error for all blocks of a page that a check refuses."""
    wrong = []
    for block in read_page(page).blocks:
        try:
            check(block)
        except Exception as error:
            wrong.append(f"{block.where}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_keeps_the_rules_for_blocks(path: Path) -> None:
    faults = [f"{name_of(path)}:{fault}" for fault in read_page(path).faults]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_parses(path: Path, tmp_path: Path) -> None:
    def check(block: Block) -> None:
        if block.language == "sh":
            found = subprocess.run(["sh", "-n"], input=block.text, capture_output=True, text=True)
            assert found.returncode == 0, found.stderr
        elif block.language == "python":
            compile(block.text, block.where, "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            check_yaml(block, tmp_path)

    checked(path, check)


def check_yaml(block: Block, folder: Path) -> None:
    """Recipes and pipeline files are read as capmix reads them; others, by the safe loader."""
    values = [one for one in yaml.safe_load_all(block.text) if one is not None]
    file = folder / Path(block.file or "x.yaml").name
    file.write_text(block.text, "utf-8")
    if len(values) == 1 and isinstance(values[0], dict):
        names = set(values[0])
        if "clauses" in names or "base" in names:
            load_recipe(str(file))
        elif "pool" in names or (names & set(STAGES) and names <= {*STAGES, *SETTINGS}):
            load_pipeline(str(file))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_call_of_capmix_is_one_that_the_command_line_takes(path: Path) -> None:
    def check(block: Block) -> None:
        if block.language != "sh" or block.code == 2:
            return
        wrong = []
        for line, arguments in capmix_calls(block.text):
            try:
                check_call(arguments)
            except (CycloptsError, UserError) as error:
                about = " ".join(str(error).split())
                wrong.append(f"line {block.line + line}: capmix {shlex.join(arguments)}: {about}")
        assert not wrong, "\n" + "\n".join(wrong)

    checked(path, check)


def getting_started_holds(ran: Ran) -> None:
    """What the page says of the numbers."""
    assert (ran.folder / "report.html").stat().st_size > 500_000
    assert (ran.folder / "figures/temperature-trigrams.pdf").exists()
    assert (ran.folder / "figures/fractions.png").exists()
    rows: dict[str, list[str]] = {}
    for line in ran.output.splitlines():  # the first table is that of `capmix measure`
        if line.strip():
            rows.setdefault(line.split()[0], line.split())
    noun_share, similarity = (
        {source: float(rows[source][i].rstrip("%")) for source in ("raw", "mini", "mini_hot")}
        for i in (8, 9)
    )
    assert noun_share["raw"] < noun_share["mini"]
    assert similarity["raw"] < similarity["mini_hot"] < similarity["mini"]


HOLDS: dict[str, Callable[[Ran], None]] = {"docs/getting-started.md": getting_started_holds}


def runnable() -> list[Any]:
    read = [read_page(path) for path in PAGES if name_of(path) not in GENERATED]
    return [
        pytest.param(page, id=name_of(page.path))
        for page in read
        if any(block.is_run or block.reason for block in page.blocks)
    ]


@pytest.mark.docs
@pytest.mark.parametrize("page", runnable())
def test_the_blocks_of_a_page_run(
    page: Page,
    docs_world: Any,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    """In order, in one folder. One page: `pytest -m docs -k getting-started tests/docs`."""
    name = name_of(page.path)
    reasons = Counter(block.reason for block in page.blocks if block.reason)
    files = sum(block.file is not None for block in page.blocks)
    record_property("docs_page", name)
    record_property("docs_counts", [sum(block.is_run for block in page.blocks), files])
    record_property("docs_reasons", dict(reasons))
    template = None if name in EMPTY_FOLDER else docs_world.template
    ran = run_page(page, new_folder(template, tmp_path), docs_world.environment)
    for where, seconds in ran.seconds.items():
        print(f"{where}: {seconds:.1f} s")
    if name in HOLDS:
        HOLDS[name](ran)
