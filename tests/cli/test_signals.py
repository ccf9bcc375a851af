"""Ctrl-C and SIGTERM end any stage within ten seconds, without partial files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli.main import main
from capmix.storage.store import Store

STUCK = """
import sys
sys.path.insert(0, {tests!r})
from functools import partial
from null_models import stuck_captions
from capmix.cli import stages
from capmix.cli.main import entry
from capmix.workspace import Workspace, open_workspace

def stuck(pool: str, work: str, source: str):
    work = open_workspace({pool!r}, {work!r})
    work.run(partial(stuck_captions, work.pool, {uid!r}, 600.0))

stages.caption = stuck
sys.argv = ["capmix", "caption", "x", "--work", "y", "--source", "z"]
entry()
"""


def stopped(process: "subprocess.Popen[str]", how: int) -> tuple[int, str, float]:
    started = time.monotonic()
    process.send_signal(how)
    _, err = process.communicate(timeout=20)
    return process.returncode, err, time.monotonic() - started


RUN = """
import sys
sys.path.insert(0, {tests!r})
from functools import partial
from null_models import null_captions
from capmix.cli import stages
from capmix.cli.main import entry
from capmix.workspace import Workspace, open_workspace
from capmix.engine.settings import EngineSettings

def run(pool: str, work: str, source: str):
    work = open_workspace({pool!r}, {work!r}, engine=EngineSettings(**{engine!r}))
    work.run(partial(null_captions, work.pool, "null", 0.01))

if __name__ == "__main__":
    stages.caption = run
    sys.argv = ["capmix", "caption", "x", "--work", "y", "--source", "z"]
    entry()
"""


@pytest.mark.parametrize(
    ("engine", "how"),
    [
        ({}, signal.SIGINT),
        ({}, signal.SIGTERM),
        ({"workers": 2}, signal.SIGINT),
        ({"workers": 2}, signal.SIGTERM),
        pytest.param({"name": "ray"}, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param({"name": "ray"}, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_command_says_how_to_go_on(
    tmp_path: Path, engine: dict[str, object], how: int
) -> None:
    tests = str(Path(__file__).parent.parent)
    pool = str(write_pool(tmp_path / "pool", shards=10, samples=40))
    work = tmp_path / "w"
    script = tmp_path / "script.py"
    script.write_text(RUN.format(tests=tests, pool=pool, work=str(work), engine=engine))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": tests},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(work.glob(".markers/captions/null/*.json")):
        time.sleep(0.05)
        assert process.poll() is None
    code, err, seconds = stopped(process, how)
    assert code == 130
    assert "capmix: interrupted; rerun the same command to resume" in err
    assert "Traceback" not in err
    assert seconds < 10
    if engine:  # workers that do not exit in time are killed; the next run removes their files
        Store(str(work)).sweep()
    left = [path.name for path in work.rglob("*") if path.is_file()]
    assert [name for name in left if name.endswith(".tmp")] == []
    assert not (work / "running").exists() or os.listdir(work / "running") == []


@pytest.mark.slow
def test_a_model_that_does_not_listen_is_ended_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    pool = str(write_pool(tmp_path / "pool"))
    tests = str(Path(__file__).parent.parent)
    uid = f"{0:032x}"
    script.write_text(STUCK.format(tests=tests, pool=pool, work=str(tmp_path / "w"), uid=uid))
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(4)
    code, err, seconds = stopped(process, signal.SIGTERM)
    assert code == 130
    assert "rerun the same command to resume" in err
    assert 5 < seconds < 10


def test_signals_are_as_before_when_a_command_has_ended(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["recipes"]) == 0
    assert signal.getsignal(signal.SIGTERM) is before
