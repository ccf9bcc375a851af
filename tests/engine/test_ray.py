"""Ray writes the same bytes as one process; a dead actor or node costs one attempt per shard."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from null_models import deadly_captions, null_captions, null_scores
from samples import write_pool

from capmix.caption.settings import CaptionSettings
from capmix.engine.estimate import JobProgress
from capmix.engine.ray import Cluster as RayEngine
from capmix.engine.settings import EngineSettings
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.workspace import open_workspace

ray = pytest.importorskip("ray")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node without CPUs and a node with four, as processes on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=4, num_gpus=1)
    made.wait_for_nodes()
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    where = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}
    ray.init(made.address, log_to_driver=False, logging_level="error", runtime_env=where)
    yield made
    ray.shutdown()
    made.shutdown()


def files(folder: Path) -> dict[str, bytes]:
    """Return the files without temporary ones, which a process that is killed leaves."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def null_run(pool: Path, work: Path, engine: EngineSettings) -> dict[str, bytes]:
    opened = open_workspace(str(pool), str(work), engine=engine)
    opened.index()
    opened.run(partial(null_captions, opened.pool))
    opened.run(partial(null_scores, opened.pool, opened.store, ["raw", "null"]))
    return files(work)


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_actors_write_the_same_bytes(cluster: Any, tmp_path: Path, workers: int) -> None:
    pool = write_pool(tmp_path / "pool", shards=5, samples=20)
    whole = null_run(pool, tmp_path / "one", EngineSettings())
    assert null_run(pool, tmp_path / "n", EngineSettings(name="ray", workers=workers)) == whole


@SLOW
def test_concepts_are_balanced_with_the_same_bytes(cluster: Any, tmp_path: Path) -> None:
    """Each pass over the texts gets all workers: those of the pass before must be gone."""
    pytest.importorskip("ahocorasick_rs")
    pool = write_pool(tmp_path / "pool", shards=3, samples=5)
    for name, engine in (("one", "local"), ("n", "ray")):
        work = open_workspace(str(pool), str(tmp_path / name), engine=engine)
        work.annotate(method="concepts", frequent=2, limit=2)
    columns = {name: one for name, one in files(tmp_path / "one").items() if name.endswith("quet")}
    found = files(tmp_path / "n")
    assert {name: found[name] for name in columns} == columns
    assert sum(name.startswith("columns/concepts/") for name in columns) == 3


def test_actors_report_how_far_they_have_come(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a shard: there is only one shard per actor."""
    seen = []
    add = JobProgress.add
    monkeypatch.setattr(JobProgress, "add", lambda self, one: seen.append(one) or add(self, one))
    pool = write_pool(tmp_path / "pool", shards=2, samples=90)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine="ray", workers=2)
    work.run(partial(null_captions, work.pool, seconds=0.02))
    assert {one.shard for one in seen if 0 < one.rows < 90} == {"00000", "00001"}


def test_an_actor_that_dies_costs_one_attempt_at_one_shard(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(tmp_path / "pool", shards=4, samples=6)
    whole = open_workspace(str(pool), str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    engine = EngineSettings(name="ray", workers=2)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=engine)
    work.run(partial(deadly_captions, work.pool, str(deaths), 2, "000020003"))
    assert files(tmp_path / "w") == files(tmp_path / "whole")
    assert "shard 00002: its worker exited" in caplog.text


def test_a_machine_that_is_too_small_for_a_worker_is_reported(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.engine.ray.connected", lambda _: (ray, True))
    engine = EngineSettings(name="ray", cpus_per_worker=999)
    work = open_workspace(str(write_pool(tmp_path / "p")), str(tmp_path / "w"), engine=engine)
    with pytest.raises(UserError, match="needs 999 CPUs and 0 GPUs, more than this machine"):
        work.index()


@pytest.mark.parametrize(
    ("engine", "needs_gpu", "workers"),
    [
        (EngineSettings(name="ray"), False, 4),
        (EngineSettings(name="ray"), True, 1),
        (EngineSettings(name="ray", gpus_per_worker=0.25), True, 4),
        (EngineSettings(name="ray", cpus_per_worker=2), False, 2),
        (EngineSettings(name="ray", workers=3), True, 3),
    ],
)
def test_as_many_actors_as_fit(
    cluster: Any, tmp_path: Path, engine: EngineSettings, needs_gpu: bool, workers: int
) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", 9, 1)), str(tmp_path / "w"))
    make = partial(null_captions, work.pool)
    job = Job(make, work.pool.shards, work.store, needs_gpu=needs_gpu)
    assert RayEngine(job, engine).workers == workers


@SLOW
def test_user_errors_end_a_run(cluster: Any, tmp_path: Path) -> None:
    engine = EngineSettings(name="ray", workers=2)
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "w"), engine=engine)
    with pytest.raises(UserError, match="captioner no-such-model"):
        work.caption("blip", CaptionSettings(model="no-such-model"))


@SLOW
def test_a_node_that_dies_costs_its_shards_one_attempt(cluster: Any, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=12, samples=8)
    whole = open_workspace(str(pool), str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    second = cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    engine = EngineSettings(name="ray", workers=8)
    work = open_workspace(str(pool), str(tmp_path / "w"), engine=engine)

    def lose_a_node() -> None:
        deadline = time.monotonic() + 60
        while not work.store.parts("captions") and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose_a_node)
    thread.start()
    work.run(partial(null_captions, work.pool, "null", 0.2))
    thread.join()
    assert files(tmp_path / "w") == files(tmp_path / "whole")


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_actors_mix_the_same_bytes(cluster: Any, workers: int) -> None:
    """Covers all passes of a mix: thresholds, weights, a distinct column, a list and texts."""
    from parts import HandMade, Made, fresh_folder

    from capmix.mix import mix as mixing
    from capmix.mix.recipe import Clause, Recipe

    samples = [
        Made(f"{i:032x}", f"raw {i}", i / 90, {"mini": [f"m {i}"]}, {"mini": [i % 7 / 9]},
             sha256=f"{i % 20:064x}", failed=i % 11 == 0)
        for i in range(90)
    ]  # fmt: skip
    clauses = [
        Clause(source="raw", where="top(raw_score, 0.3)", weight="1.5"),
        Clause(source="mini", where="mini_score > 0.2 and length(mini_text) > 3 and draw < 0.9"),
    ]
    recipe = Recipe(name="drawn", about="", clauses=clauses, distinct="sha256")
    mixing.ROWS_AT_ONCE, before = 20, mixing.ROWS_AT_ONCE
    try:
        found = []
        for engine in ({}, {"name": "ray", "workers": workers}):
            shards = {f"{i:05d}": samples[9 * i : 9 * i + 9] for i in range(10)}
            here = HandMade(fresh_folder(), shards)
            here.mix(recipe, npy=True, **engine)
            here.mix(recipe, "texts", texts=True, **engine)
            found.append(files(Path(here.store.root) / "subsets"))
    finally:
        mixing.ROWS_AT_ONCE = before
    assert found[0] == found[1]
    assert len(found[0]) == 5


@pytest.mark.parametrize("sketch", [True, pytest.param(False, marks=SLOW)])
@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_actors_measure_the_same(cluster: Any, tmp_path: Path, workers: int, sketch: bool) -> None:
    pool = write_pool(tmp_path / "pool", shards=5, samples=20)
    null_run(pool, tmp_path / "w", EngineSettings())
    work = open_workspace(str(pool), str(tmp_path / "w"))
    whole = work.measure(sketch=sketch)
    here = files(tmp_path / "w/measures")
    shutil.rmtree(tmp_path / "w/measures")
    shutil.rmtree(tmp_path / "w/.markers/measures")
    assert work.measure(sketch=sketch, engine="ray", workers=workers) == whole
    assert files(tmp_path / "w/measures") == here
