import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docs_folder
import forks
import pytest


@dataclass(frozen=True)
class World:
    """What the blocks of all pages share."""

    template: Path
    environment: dict[str, str]


@pytest.fixture(scope="session")
def docs_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("docs-world")
    docs_folder.write_models(folder)
    docs_folder.write_programs(folder / "bin")
    made = World(docs_folder.write_folder(folder / "template"), docs_folder.environment(folder))
    with docs_folder.caption_server(), ExitStack() as stack:
        if "CAPMIX_DOCS_PLAIN" not in os.environ:
            address = f"{tempfile.mkdtemp()}/capmix.socket"  # a short path, as sockets want it
            stack.callback(shutil.rmtree, os.path.dirname(address))
            stack.enter_context(forks.fork_server(address, made.environment))
            forks.write_client(folder / "bin/capmix", address)
        yield made


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A row per page whose blocks were run."""
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            about = dict(getattr(report, "user_properties", []))
            if "docs_page" in about and report.when == "call":
                rows.append((about["docs_page"], outcome, report.duration, about))
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("blocks of the documentation")
    width = max(len(name) for name, *_ in rows)
    write(f"{'page':<{width}}  {'':<6}  {'s':>5}  {'run':>3}  {'files':>5}  parsed only")
    for name, outcome, seconds, about in sorted(rows):
        counts = about["docs_counts"]
        reasons = ", ".join(f"{count} {reason}" for reason, count in about["docs_reasons"].items())
        write(
            f"{name:<{width}}  {outcome:<6}  {seconds:>5.1f}  {counts[0]:>3}  {counts[1]:>5}  "
            f"{reasons}"
        )
    ran = sum(about["docs_counts"][0] for *_, about in rows)
    parsed = sum(sum(about["docs_reasons"].values()) for *_, about in rows)
    write(f"{len(rows)} pages: {ran} blocks run, {parsed} parsed only")
