"""Run the blocks of a page in a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blocks import Block, Page

SECONDS = 600  # for one block
DRIVER = Path(__file__).parent / "driver.py"
SHOWN = 6000  # letters of output, at the end


class BlockError(AssertionError):
    """A block did not do what the page says."""


@dataclass
class Ran:
    """What a page printed, block by block, and how long each took."""

    folder: Path
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Of all blocks."""
        return "".join(self.outputs.values())


def run_page(page: Page, folder: Path, environment: dict[str, str]) -> Ran:
    """Run all blocks in order. Raises BlockError for the first one that fails."""
    ran = Ran(folder)
    python = _Python(folder, environment)
    try:
        for block in page.blocks:
            if block.file is not None:
                place = folder / block.file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(block.text, "utf-8")
            elif block.is_run:
                output = folder.parent / f"output-{block.line}.txt"
                output.touch()
                start = time.monotonic()
                if block.language == "sh":
                    code = _shell(block, folder, environment, output)
                else:
                    code = python.run(block, output)
                ran.seconds[block.where] = time.monotonic() - start
                ran.outputs[block.where] = output.read_text("utf-8", "replace")
                _check(block, code, ran)
    finally:
        python.end()
    return ran


def _check(block: Block, code: int | None, ran: Ran) -> None:
    if code == block.code:
        return
    got = f"not done after {SECONDS} s" if code is None else f"exit code {code}"
    printed = ran.outputs[block.where][-SHOWN:]
    raise BlockError(
        f"{block.where}: {got}, expected {block.code}\n\n{block.text}\n--- output ---\n{printed}\n"
        f"--- in {ran.folder}"
    )


def _shell(block: Block, folder: Path, environment: dict[str, str], output: Path) -> int | None:
    script = folder.parent / f"block-{block.line}.sh"
    script.write_text(block.text, "utf-8")
    with output.open("ab") as stream:
        process = subprocess.Popen(
            ["sh", "-e", str(script)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end_group(process.pid)  # what it left in the background too
        process.wait()


class _Python:
    """One process for the Python blocks of a page, started by the first."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(self, block: Block, output: Path) -> int | None:
        """The exit code that `python` would give; None where it is not done in time."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(DRIVER)],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        asked = {
            "text": block.text, "page": str(block.page), "line": block.line, "output": str(output)
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        process, is_late = self._process, threading.Event()

        def end() -> None:
            is_late.set()
            _end_group(process.pid)

        timer = threading.Timer(SECONDS, end)
        timer.start()
        answer = self._process.stdout.readline()
        timer.cancel()
        if answer:
            return int(answer)
        code = self._process.wait()
        self._process = None
        return None if is_late.is_set() else code

    def end(self) -> None:
        if self._process is not None:
            _end_group(self._process.pid)
            self._process.wait()


def _end_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def new_folder(template: Path | None, place: Path) -> Path:
    """A copy of the template below `place`; an empty folder without one."""
    folder = place / "page"
    if template is None:
        folder.mkdir()
    else:
        shutil.copytree(template, folder)
    return folder
