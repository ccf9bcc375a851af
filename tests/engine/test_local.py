"""Worker processes write the same bytes as one process, and a run survives their deaths."""

import multiprocessing.spawn
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from null_models import (
    captions_killed_by,
    captions_of_changing_settings,
    captions_of_devices,
    captions_of_few_shards,
    captions_of_no_process,
    captions_of_one_process,
    deadly_captions,
    null_captions,
    null_scores,
)
from samples import write_pool

from capmix.caption.settings import CaptionSettings
from capmix.engine.estimate import JobProgress
from capmix.engine.local import InProcess, local_engine
from capmix.engine.settings import EngineSettings
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.score.settings import ScoreSettings
from capmix.storage.store import Store
from capmix.workspace import open_workspace

SLOW = pytest.mark.slow


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def null_run(pool: Path, work: Path, engine: EngineSettings) -> dict[str, bytes]:
    """Caption and score a pool; return all files of the work directory."""
    opened = open_workspace(str(pool), str(work), engine=engine)
    opened.index()
    opened.run(partial(null_captions, opened.pool))
    opened.run(partial(null_scores, opened.pool, opened.store, ["raw", "null"]))
    return files(work)


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_processes_write_the_same_bytes(tmp_path: Path, workers: int) -> None:
    pool = write_pool(tmp_path / "pool", shards=5, samples=20)
    whole = null_run(pool, tmp_path / "one", EngineSettings())
    assert len(whole) == 1 + 5 * 2 * 5 + 5 * 2  # tables and markers, scores as arrays
    assert null_run(pool, tmp_path / "n", EngineSettings(workers=workers)) == whole


@SLOW
def test_the_embedded_models_in_two_processes(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=3, samples=10)
    found = []
    for name, engine in (("one", EngineSettings()), ("two", EngineSettings(workers=2))):
        work = open_workspace(str(pool), str(tmp_path / name), engine=engine)
        work.caption("mini", CaptionSettings(model="mini", captions_per_image=2))
        work.score(ScoreSettings(model="mini", sources=["raw", "mini"]))
        found.append(files(tmp_path / name))
    assert found[0] == found[1]


def test_processes_report_how_far_they_have_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a shard: there is only one shard per worker."""
    seen = []
    add = JobProgress.add
    monkeypatch.setattr(JobProgress, "add", lambda self, one: seen.append(one) or add(self, one))
    pool = write_pool(tmp_path / "pool", shards=2, samples=100)
    work = open_workspace(str(pool), str(tmp_path / "w"), workers=2)
    work.run(partial(null_captions, work.pool, seconds=0.015))
    assert {one.shard for one in seen if 0 < one.rows < 100} == {"00000", "00001"}


def test_a_worker_that_dies_costs_one_attempt_at_one_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(tmp_path / "pool", shards=4, samples=6)
    whole = open_workspace(str(pool), str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=2))
    work.run(partial(deadly_captions, work.pool, str(deaths), 2, "000020003"))
    assert files(tmp_path / "w") == files(tmp_path / "whole")
    told = caplog.text
    assert "shard 00002: its worker process exited (exit code 7); will be retried" in told


def test_a_shard_that_kills_every_worker_is_reported_and_the_others_are_made(
    tmp_path: Path,
) -> None:
    pool = write_pool(tmp_path / "pool", shards=4, samples=6)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=2))
    with pytest.raises(UserError, match=r"1 of 4 shards .*00002: its worker process exited"):
        work.run(partial(deadly_captions, work.pool, str(deaths), 99, "000020003"))
    assert len(list(deaths.iterdir())) in (3, 4)  # once more where it was read ahead
    assert work.store.parts("captions/null") == [f"captions/null/0000{i}" for i in (0, 1, 3)]


@SLOW
def test_a_shard_is_not_lost_because_of_those_that_are_read_ahead(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=8, samples=2)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=1))
    with pytest.raises(UserError, match=r"2 of 8 shards could not be processed"):
        work.run(partial(captions_killed_by, work.pool, ["000030001", "000050000"]))
    assert work.store.parts("captions/null") == [
        f"captions/null/0000{i}" for i in (0, 1, 2, 4, 6, 7)
    ]


def test_a_worker_that_never_comes_up_does_not_eat_the_shards_of_the_others(
    tmp_path: Path,
) -> None:
    pool = write_pool(tmp_path / "pool", shards=12, samples=2)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=2))
    (counts,) = work.run(partial(captions_of_one_process, work.pool, str(tmp_path)))
    assert (counts.ok, counts.total) == (24, 24)


def test_a_worker_that_cannot_start_is_reported(tmp_path: Path) -> None:
    """The pool is so large that the job does not fit in the buffer of a pipe."""
    shards = [Shard(f"{number:08d}", "a fingerprint") for number in range(20_000)]
    job = Job(partial(null_captions, None), shards, Store(str(tmp_path)))  # type: ignore[arg-type]
    executable = multiprocessing.spawn.get_executable()
    multiprocessing.spawn.set_executable("/bin/false")
    try:
        with pytest.raises(UserError, match=r"exited during startup \(exit code 1\)"):
            local_engine(job, EngineSettings(workers=2)).plan()
    finally:
        multiprocessing.spawn.set_executable(executable)


def test_workers_of_other_settings_than_the_first_end_the_run(tmp_path: Path) -> None:
    """The next run would reject their parts."""
    pool = write_pool(tmp_path / "pool", shards=6, samples=20)
    (tmp_path / "seen").mkdir()
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=2))
    with pytest.raises(UserError, match="model mismatch: this worker loaded different weights"):
        work.run(partial(captions_of_changing_settings, work.pool, str(tmp_path / "seen")))


@SLOW
def test_deadly_neighbours_do_not_hold_up_the_other_shards(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=12, samples=1)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=1))
    with pytest.raises(UserError, match="6 of 12 shards could not be processed"):
        work.run(partial(captions_of_few_shards, work.pool, 6))
    assert work.store.parts("captions/null") == [f"captions/null/{i:05d}" for i in range(6, 12)]


@SLOW
def test_a_run_ends_if_all_workers_keep_dying(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(tmp_path / "pool", shards=40, samples=1)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=1))
    with pytest.raises(UserError, match="every worker process exited 5 times in a row"):
        work.run(partial(captions_of_no_process, work.pool))
    assert caplog.text.count("its worker process exited (exit code 7)") == 5


@SLOW
def test_user_errors_end_a_run_of_processes(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=EngineSettings(workers=2))
    with pytest.raises(UserError, match="captioner no-such-model"):
        work.caption("blip", CaptionSettings(model="no-such-model"))


def test_several_gpus_have_a_worker_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capmix.engine.local._visible_gpus", lambda: ["3", "5"])
    work = open_workspace(str(write_pool(tmp_path / "pool", 6, 20)), str(tmp_path / "w"))
    work.run(partial(captions_of_devices, work.pool), needs_gpu=True)
    parts = [work.store.read_table(f"captions/null/0000{i}.parquet") for i in range(6)]
    assert {text for part in parts for text in part["text"].to_pylist()} == {"GPU 3", "GPU 5"}
    work = work.using(workers=3)
    with pytest.raises(UserError, match="--workers 3: this machine has 2 GPUs"):
        work.run(partial(captions_of_devices, work.pool), needs_gpu=True)


def test_without_a_gpu_there_is_one_process_and_no_import_of_torch(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", 1, 2)), str(tmp_path / "w"))
    job = Job(partial(null_captions, work.pool), work.pool.shards, work.store)
    assert isinstance(local_engine(job, EngineSettings()), InProcess)


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Exports use processes by default; they must not run the user's script again."""
    write_pool(tmp_path / "pool", 2, 8)
    script = tmp_path / "script.py"
    script.write_text(
        "import capmix\n"
        "print('once')\n"
        "ws = capmix.open('pool', work='w')\n"
        "ws.mix('raw').export('out', samples_per_shard=4, workers=2)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "once\n"
    assert len(list((tmp_path / "out").glob("*.tar"))) == 4
