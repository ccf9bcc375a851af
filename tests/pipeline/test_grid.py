import json
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from samples import write_pool

from capmix.engine.settings import RunSettings
from capmix.errors import UserError
from capmix.pipeline import grid as grid_module
from capmix.pipeline.config import TrainSection, load_pipeline
from capmix.pipeline.grid import Cell, summarised, write_tables
from capmix.pipeline.run import run_pipeline
from capmix.training.launch import SideBySide
from capmix.workspace import Subset, open_workspace

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        write_pool(tmp_path / name, shards=2, samples=8)
    (tmp_path / "vit-nano.json").write_text(json.dumps(MODEL))
    training = {
        "seeds": [0, 1], "model": str(tmp_path / "vit-nano.json"), "samples": 16,
        "batch_size": 8, "checkpoints": 1, "warmup": 1, "workers": 0, "device": "cpu",
    }  # fmt: skip
    content = {
        "pool": {"first": str(tmp_path / "one"), "second": str(tmp_path / "two")},
        "work": str(tmp_path / "work"),
        "mix": {"recipes": ["raw", {"recipe": "control-random", "fraction": 0.5}]},
        "train": training,
        "evaluate": {"evalsets": "embedded"},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_every_recipe_and_seed_is_run_once_and_summarised(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = "\n".join(run_pipeline(load_pipeline(str(experiment))).lines)
    assert "control-raw-random50" in shown
    cells = pq.read_table(tmp_path / "work/results/cells.parquet").to_pylist()
    assert {(c["pool"], c["recipe"], c["seed"]) for c in cells} == {
        (pool, recipe, seed)
        for pool in ("first", "second")
        for recipe in ("raw", "control-raw-random50")
        for seed in (0, 1)
    }
    run = tmp_path / "work/first/runs/raw-seed1"
    lines = [json.loads(line) for line in (run / "eval_other_sets.jsonl").read_text().splitlines()]
    own = [c for c in cells if (c["pool"], c["recipe"], c["seed"]) == ("first", "raw", 1)]
    numbers = {(c["evalset"], c["metric"]): c["value"] for c in own}
    for line in lines:
        assert numbers[line["dataset"], "main_metric"] == line["metrics"]["main_metric"]
    main = [line["metrics"]["main_metric"] for line in lines]
    assert numbers["mean of all sets", "main_metric"] == pytest.approx(statistics.mean(main))
    summary = pa_csv.read_csv(tmp_path / "work/results/summary.csv").to_pylist()
    row = next(r for r in summary if (r["pool"], r["recipe"], r["metric"]) == (
        "first", "raw", "acc5"))  # fmt: skip
    values = [c["value"] for c in cells if (c["pool"], c["recipe"], c["metric"]) == (
        "first", "raw", "acc5")]  # fmt: skip
    assert row["mean"] == pytest.approx(statistics.mean(values))
    assert row["deviation"] == pytest.approx(statistics.stdev(values))
    checkpoint = run / "checkpoints/epoch_latest.pt"
    before = checkpoint.stat().st_mtime_ns
    run_pipeline(load_pipeline(str(experiment)))
    assert checkpoint.stat().st_mtime_ns == before
    assert pq.read_table(tmp_path / "work/results/cells.parquet").to_pylist() == cells
    content = yaml.safe_load(experiment.read_text())
    content["train"]["devices"] = 2  # finished runs do not need two GPUs
    experiment.write_text(yaml.safe_dump(content))
    run_pipeline(load_pipeline(str(experiment)))


@pytest.mark.slow
def test_runs_side_by_side_end_with_the_weights_of_runs_in_turn(
    experiment: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(experiment.read_text())
    content |= {"pool": content["pool"]["first"], "mix": {"recipes": ["raw"]}, "evaluate": None}
    content["train"]["threads"] = 1
    found = []
    for parallel in (1, 2):
        work = tmp_path / f"work-{parallel}"
        content["work"] = str(work)
        content["train"]["parallel"] = parallel
        experiment.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        run_pipeline(load_pipeline(str(experiment)))
        files = [work / f"runs/raw-seed{seed}/checkpoints/epoch_latest.pt" for seed in (0, 1)]
        found.append([torch.load(file, weights_only=True)["state_dict"] for file in files])
    for turn, beside in zip(*found, strict=True):
        assert all(torch.equal(beside[name], value) for name, value in turn.items())


def test_an_interrupt_ends_the_runs_that_train_side_by_side() -> None:
    beside = SideBySide(2)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(beside.run, ["sleep", "60"])
        while not beside._running:
            time.sleep(0.01)
        beside.stop()
        assert waiting.result(10) == -signal.SIGTERM
    assert beside.run(["sleep", "60"]) == 130


@pytest.mark.slow
def test_force_trains_runs_of_other_settings_anew(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(experiment.read_text())
    content["pool"] = content["pool"]["first"]
    content["mix"] = {"recipes": ["raw"]}
    content["train"]["seeds"] = [0]
    experiment.write_text(yaml.safe_dump(content))
    run_pipeline(load_pipeline(str(experiment)))
    content["train"]["learning_rate"] = 0.01
    experiment.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="contains a run with different scale, settings"):
        run_pipeline(load_pipeline(str(experiment)))
    run_pipeline(load_pipeline(str(experiment)), RunSettings(force=True))
    about = json.loads((tmp_path / "work/runs/raw-seed0/run.json").read_text())
    assert about["scale"]["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-B32"}, "unknown open_clip model"),
        ({"open_clip": ["--no-such"]}, "rejected these arguments"),
        ({"texts": {"blp2": 1}}, "no captions of source 'blp2'"),
        ({"exact": True, "samples": 15, "accumulate": 2}, "divisible by"),
        ({"devices": 2}, "multiple devices must be GPUs"),
        ({"devices": 2, "parallel": 2}, "parallel: needs `devices: 1`"),
    ],
)
def test_what_would_stop_the_first_run_is_told_before_anything_is_made(
    experiment: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    content = yaml.safe_load(experiment.read_text())
    content["train"] |= changes
    experiment.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        run_pipeline(load_pipeline(str(experiment)))
    assert not (tmp_path / "work/first/samples").exists()


def test_one_seed_has_no_deviation() -> None:
    (row,) = summarised([Cell("p", "raw", 3, 0, {("set", "acc1"): 0.5})])
    assert (row["mean"], row["deviation"], row["seeds"]) == (0.5, None, 1)


def test_groups_of_classes_are_in_the_tables_of_a_grid(tmp_path: Path) -> None:
    def cell(seed: int, rare: float, classes: list[dict[str, Any]]) -> Cell:
        numbers = {("set", "main_metric"): 0.5, ("set", "acc1_group:rare"): rare}
        return Cell("p", "raw", 3, seed, numbers, classes)

    row = {"task": "set", "class": 0, "name": "okapi", "group": "rare", "images": 2, "acc1": 0.5}
    lines = write_tables([cell(0, 0.25, [row]), cell(1, 0.75, [row])], str(tmp_path), {})
    assert [line.split("  ")[-1].strip() for line in lines[:2]] == ["rare (set)", "50.0 ± 35.4"]
    assert lines[-1].endswith("summary.csv, cells.csv and classes.csv")
    written = pq.read_table(tmp_path / "results/classes.parquet").to_pylist()
    assert [(one["recipe"], one["seed"], one["name"]) for one in written] == [
        ("raw", 0, "okapi"), ("raw", 1, "okapi"),
    ]  # fmt: skip
    write_tables([cell(0, 0.25, [])], str(tmp_path), {})
    assert not list((tmp_path / "results").glob("classes*"))


def test_the_order_of_probes_is_compared_with_that_of_runs(tmp_path: Path) -> None:
    cells = [
        Cell("p", recipe, 3, 0, {("mean of all sets", "main_metric"): value})
        for recipe, value in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    ]
    probes = {("p", "a"): 5.0, ("p", "b"): 7.0, ("p", "c"): 6.0}
    lines = write_tables(cells, str(tmp_path), probes)
    assert "Kendall's tau 0.33 over 3 recipes" in "\n".join(lines)


def test_after_a_failed_run_beside_another_no_third_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[int] = []
    both = threading.Barrier(2)

    def train(*given: Any) -> None:
        begun.append(given[3])
        both.wait(10)
        if given[3] == 0:
            raise UserError("no space left")
        time.sleep(0.3)

    monkeypatch.setattr(grid_module, "_train", train)
    work = open_workspace(str(write_pool(tmp_path / "pool", 1, 2)), str(tmp_path / "work"))
    training = TrainSection(seeds=[0, 1, 2, 3], parallel=2)
    subset = Subset(work, "raw")
    with pytest.raises(UserError, match="no space left"):
        grid_module._train_side_by_side(work, [(subset, seed) for seed in range(4)], training)
    assert sorted(begun) == [0, 1]
    assert "run raw, seed 0: no space left" in caplog.text
