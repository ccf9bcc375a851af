"""A run that is killed at random moments resumes and ends with the files of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from null_models import null_captions, null_scores
from samples import write_pool

from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.storage.store import Store
from capmix.workspace import open_workspace

SCRIPT = str(Path(__file__).parent / "one_stage.py")
STAGES = ("index", "caption", "score", "export")
KILLS = int(os.environ.get("CAPMIX_KILLS", "2"))  # within one shard


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def prepared(folder: Path, until: str, shards: int = 12, samples: int = 20) -> tuple[Path, Path]:
    """Return a pool, and a work directory in which all stages before `until` are done."""
    pool = write_pool(folder / "pool", shards=shards, samples=samples)
    work = open_workspace(str(pool), str(folder / "before"))
    if until != "index":
        work.index()
    if until in ("score", "export"):
        work.run(partial(null_captions, work.pool))
    if until == "export":
        work.run(partial(null_scores, work.pool, work.store, ["raw", "null"]))
        recipe = folder / "all.yaml"
        recipe.write_text("name: all\nabout: x\nclauses: [{source: raw}]\n")
        work.mix(str(recipe))
    return pool, folder / "before"


def started(stage: str, pool: Path, work: Path, *workers: str) -> "subprocess.Popen[str]":
    """Start a stage in a process, and wait until it is about to begin."""
    command = [sys.executable, SCRIPT, stage, str(pool), str(work), *workers]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def rows_add_up(work: Path) -> None:
    store = Store(str(work))
    for part in store.parts(""):
        marker = store.read_marker(part)
        if marker is not None:
            assert marker.rows_in == marker.counts.total, part


def kill_and_resume(tmp_path: Path, stage: str, kills: int, *workers: str) -> None:
    pool, before = prepared(tmp_path, stage)
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    begun = time.monotonic()
    process = started(stage, pool, whole, *workers)
    ready = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - ready
    expected = files(whole)
    draw = random.Random(stage)
    unfinished = 0
    for number in range(kills):
        work = tmp_path / f"killed{number}"
        shutil.copytree(before, work)
        process = started(stage, pool, work, *workers)
        time.sleep(draw.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        unfinished += files(work) != expected
        process = started(stage, pool, work)
        assert process.wait() == 0
        if workers or stage == "export":  # worker processes exit shortly after their parent
            deadline = time.monotonic() + 10
            while files(work) != expected and time.monotonic() < deadline:
                time.sleep(0.2)
                assert started(stage, pool, work).wait() == 0  # removes their temporary files
        assert files(work) == expected
        rows_add_up(work)
        shutil.rmtree(work)
    assert unfinished > kills // 4, f"{seconds:.1f} s, begun {ready - begun:.1f} s before"


def test_a_killed_process_resumes(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, "caption", kills=2)


def captioned(pool: Path, work: Path) -> None:
    opened = open_workspace(str(pool), str(work))
    opened.run(partial(null_captions, opened.pool))


def side_lines(work: Path) -> int:
    """Return the number of batches in the side files of unfinished shards."""
    found = [path.read_bytes() for path in work.glob(".partial/**/*") if path.is_file()]
    return sum(data.count(b"\n") for data in found)


def test_a_process_killed_inside_a_shard_resumes_there(tmp_path: Path) -> None:
    """One shard of 20 batches, killed again and again; each run adds to what the last one left."""
    pool, before = prepared(tmp_path, "caption", shards=1, samples=320)
    whole, work = tmp_path / "whole", tmp_path / "work"
    shutil.copytree(before, whole)
    captioned(pool, whole)
    expected = files(whole)
    draw = random.Random(KILLS)
    kills = 0
    while kills < KILLS:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)
        kept = 0
        while kills < KILLS and files(work) != expected:
            process = started("caption", pool, work)
            while process.poll() is None and side_lines(work) == kept:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            kills += process.wait() != 0
            rows_add_up(work)
            if "captions/null/00000.parquet" not in files(work):
                assert side_lines(work) > kept
                kept = side_lines(work)
    captioned(pool, work)
    assert files(work) == expected


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_process_killed_at_20_moments_resumes(tmp_path: Path, stage: str) -> None:
    kill_and_resume(tmp_path, stage, kills=20)


@pytest.mark.slow
def test_a_killed_parent_of_processes_resumes_and_leaves_no_orphan(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, "caption", 3, "2")
    time.sleep(1)
    found = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert found.stdout == ""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": quick})
    made.add_node(num_cpus=2)
    made.wait_for_nodes()
    where = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent.parent)}}
    ray.init(made.address, log_to_driver=False, logging_level="error", runtime_env=where)
    yield made
    ray.shutdown()
    made.shutdown()


def ray_run(
    tmp_path: Path, stage: str, armed: Callable[[], Callable[[threading.Event], bool]], times: int
) -> None:
    """Run a stage on Ray, with a fault in each run, until `times` faults occurred in time.

    `armed` is called before each run and returns the function that causes the fault. That function
    returns whether it did so before the event, which is set when the run is over.
    """
    pool, before = prepared(tmp_path, stage, shards=30)
    whole = tmp_path / "whole"
    shutil.copytree(before, whole)
    ray_stage(stage, pool, whole, EngineSettings())
    harmed: list[bool] = []
    while sum(harmed) < times:
        work = tmp_path / f"harmed{len(harmed)}"
        shutil.copytree(before, work)
        is_over, harm = threading.Event(), armed()

        def disturb(
            is_over: threading.Event = is_over,
            harm: Callable[[threading.Event], bool] = harm,
        ) -> None:
            harmed.append(harm(is_over))

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            while files(work) != files(whole):  # a shard may lose its worker three times
                with suppress(UserError):
                    ray_stage(stage, pool, work, EngineSettings(name="ray", workers=4))
        finally:
            is_over.set()
            thread.join()
        rows_add_up(work)
        assert len(harmed) < 10 * times, "the runs end before they can be harmed"


def ray_stage(stage: str, pool: Path, work: Path, engine: EngineSettings) -> None:
    opened = open_workspace(str(pool), str(work), engine=engine)
    if stage == "index":
        opened.index()
    elif stage == "caption":
        opened.run(partial(null_captions, opened.pool, "null", 0.02))
    elif stage == "score":
        opened.run(partial(null_scores, opened.pool, opened.store, ["raw", "null"]))
    else:
        opened.export("all", f"{work}/out", samples_per_shard=20)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_ray_actors_killed_at_20_moments(cluster: Any, tmp_path: Path, stage: str) -> None:
    def harm(is_over: threading.Event) -> bool:
        while not is_over.is_set():
            found = subprocess.run(["pgrep", "-f", "ray::Actor"], capture_output=True, text=True)
            if found.stdout and not is_over.wait(random.uniform(0, 1)):
                with suppress(ProcessLookupError):
                    os.kill(int(random.choice(found.stdout.split())), signal.SIGKILL)
                    return True
            is_over.wait(0.05)
        return False

    ray_run(tmp_path, stage, lambda: harm, times=20)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "times"), [("caption", 20), ("score", 3), ("export", 3)])
def test_ray_nodes_killed(cluster: Any, tmp_path: Path, stage: str, times: int) -> None:
    def armed() -> Callable[[threading.Event], bool]:
        node = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()

        def harm(is_over: threading.Event) -> bool:
            is_over.wait(random.uniform(0, 5))
            in_time = not is_over.is_set()
            cluster.remove_node(node, allow_graceful=False)
            return in_time

        return harm

    ray_run(tmp_path, stage, armed, times)
