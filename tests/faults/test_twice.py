"""Two runs on one work directory: the second prints a warning, they divide the shards, and every
part is complete."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from null_models import NullCaptioner, null_captions
from samples import write_pool

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.storage.store import Store
from capmix.workspace import open_workspace

SCRIPT = str(Path(__file__).parent / "one_stage.py")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_two_runs_share_the_shards(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=40, samples=20)
    whole = open_workspace(str(pool), str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    runs = []
    for _ in range(2):
        command = [sys.executable, SCRIPT, "caption", str(pool), str(tmp_path / "w")]
        pipe = subprocess.PIPE
        runs.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        assert runs[-1].stdout is not None
        runs[-1].stdout.readline()
        time.sleep(0.2)
    told = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert files(tmp_path / "w") == files(tmp_path / "whole")
    assert f"another capmix process is using {tmp_path}/w (process {runs[0].pid} on " in told[1]
    assert "another capmix process" not in told[0]
    assert all("800 images in" in text and "0 failed, 0 dropped" in text for text in told)


def test_a_killed_run_does_not_count_as_active(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=20, samples=20)
    command = [sys.executable, SCRIPT, "caption", str(pool), str(tmp_path / "w")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "w/.markers/captions").glob("*/*.json")):
        time.sleep(0.02)
    run.kill()
    run.communicate()
    assert Store(str(tmp_path / "w")).files("running")
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0
    assert "another capmix process" not in found.stderr
    assert Store(str(tmp_path / "w")).files("running") == []


class Moody(NullCaptioner):
    """Returns another caption at each call, like a server; first calls `meanwhile` once."""

    def __init__(self, meanwhile: Callable[[], object] | None = None):
        super().__init__()
        self.meanwhile = meanwhile

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return [[Caption(f"{uid} at {time.monotonic_ns()}")] for uid in uids]


def test_a_part_that_another_run_has_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """Scores may already depend on it."""
    pool = str(write_pool(tmp_path / "pool", shards=1, samples=5))
    part = tmp_path / "w/captions/null/00000.parquet"
    made: list[bytes] = []

    def other_run() -> None:
        other = open_workspace(pool, str(tmp_path / "w"))
        other.run(lambda: [image_caption_stage(other.pool, Moody(), "null")])
        made.append(part.read_bytes())

    work = open_workspace(pool, str(tmp_path / "w"))
    (counts,) = work.run(lambda: [image_caption_stage(work.pool, Moody(other_run), "null")])
    assert (counts.ok, counts.total) == (5, 5)
    assert [part.read_bytes()] == made
