"""Training on data in S3: data workers are forked, and obstore hangs in a fork of a process
that has used it."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from s3_server import BUCKET, S3, s3_server
from samples import write_pool

from capmix.pool import open_pool
from capmix.storage.s3 import THREADS
from capmix.training.launch import TrainingData, launch, look_up
from capmix.training.pairs import ExportedShards
from capmix.training.scales import TrainSettings
from capmix.training.stream import CONTEXT
from capmix.workspace import open_workspace

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server
        for path in server.fs.find(BUCKET):
            server.fs.rm_file(path)


@pytest.fixture(scope="module")
def pool(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pool of four shards with 48 samples; this test process has used S3."""
    local = write_pool(tmp_path_factory.mktemp("pool"), 4, 12)
    s3.fs.put(str(local), f"{BUCKET}/pool", recursive=True)
    location = f"s3://{BUCKET}/pool"
    open_workspace(location, f"s3://{BUCKET}/work").mix("raw")
    return location


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "vit-nano.json").write_text(json.dumps(MODEL), "utf-8")
    return str(tmp_path / "vit-nano.json")


def trained(run: Path) -> tuple[int, bool]:
    """Return the number of samples in training, and whether any failed."""
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return last["samples"], (run / "failures.jsonl").exists()


def test_a_subset_on_s3_is_trained_on_by_forked_workers(
    pool: str, model: str, tmp_path: Path
) -> None:
    settings = TrainSettings(
        model=model, batch_size=8, samples=64, checkpoints=2, workers=2, device="cpu"
    )
    data = TrainingData(pool=pool, work=f"s3://{BUCKET}/work", subset="raw")
    checkpoint = launch(settings, data, str(tmp_path / "run"))
    assert Path(checkpoint).is_file()
    assert trained(tmp_path / "run") == (64, False)


@pytest.mark.slow
def test_the_command_trains_on_exported_shards_on_s3(pool: str, model: str, tmp_path: Path) -> None:
    """Each pass starts new workers."""
    options = f"--model {model} --batch-size 8 --samples 96 --checkpoints 2 --workers 2"
    done = subprocess.run(
        [sys.executable, "-m", "capmix", "train", "--data", pool, *options.split(),
         "--device", "cpu", "--no-resample", "--out", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert trained(tmp_path / "run") == (96, False)


def test_looking_data_up_leaves_s3_unused_in_the_process_that_trains(pool: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as new:
        assert new.submit(looked_up, pool, 2).result() == (4, False)
        assert new.submit(looked_up, pool, 0).result() == (4, True)  # no worker to fork


def looked_up(pool: str, workers: int) -> tuple[int, bool]:
    """Return the number of shards, and whether this process has used S3."""
    settings = TrainSettings(workers=workers)
    for data in (
        TrainingData([pool]),
        TrainingData(pool=pool, work=f"s3://{BUCKET}/work", subset="raw"),
    ):
        source = look_up(partial(data.source, settings), settings)
        assert source.identity
        assert source.reopened().shards == source.shards
    return len(source.shards), THREADS.process == os.getpid()


def test_workers_of_a_process_that_used_s3_stop_with_a_reason(pool: str) -> None:
    """Fail instead of hanging."""
    source = ExportedShards([pool])
    open_pool(pool)
    here, there = CONTEXT.Pipe(duplex=False)

    def read() -> None:
        try:
            there.send(len(list(source.reopened().read("0"))))
        except Exception as error:
            there.send(f"{type(error).__name__}: {error}")

    child = CONTEXT.Process(target=read)
    child.start()
    assert here.poll(20)
    assert here.recv().startswith("UserError: s3://: this process was forked from one")
    child.join()
