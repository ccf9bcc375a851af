"""The next run removes what a killed run left behind, even if it has nothing to do itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from samples import write_pool

from capmix.workspace import Workspace, open_workspace


def note(work: Path, process: int) -> Path:
    """Register a run on this machine, as capmix 0.1 does."""
    (work / "running").mkdir(exist_ok=True)
    path = work / f"running/{process:012x}"
    path.write_text(json.dumps({"host": socket.gethostname(), "process": process}))
    return path


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def indexed(tmp_path: Path) -> Workspace:
    work = open_workspace(str(write_pool(tmp_path / "pool", 1, 2)), str(tmp_path / "work"))
    work.index()
    return open_workspace(work=str(tmp_path / "work"))


def test_a_run_with_nothing_to_do_removes_notes_of_dead_runs(tmp_path: Path) -> None:
    work = indexed(tmp_path)
    note(tmp_path / "work", dead_process())
    work.index()
    assert not (tmp_path / "work/running").exists()


def test_notes_of_living_runs_stay(tmp_path: Path) -> None:
    work = indexed(tmp_path)
    dead = note(tmp_path / "work", dead_process())
    living = note(tmp_path / "work", os.getpid())
    work.index()
    assert living.exists()
    assert not dead.exists()
