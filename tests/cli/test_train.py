"""The commands that train and evaluate."""

import json
from pathlib import Path

import pytest
from evalsets import write_classification
from samples import write_pool
from tiny_clip import CLIP, open_clip_folder

from capmix.cli.main import main
from capmix.training.scales import TrainSettings

MODEL = CLIP | {
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
}


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    found = capsys.readouterr().err.strip()
    assert "\n" not in found
    return found


def test_train_from_a_pool_with_a_text_a_visit_then_eval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, work, run = (str(tmp_path / name) for name in ("pool", "work", "run"))
    write_pool(tmp_path / "pool", shards=2, samples=8)
    (tmp_path / "vit-nano.json").write_text(json.dumps(MODEL))
    assert main(["mix", pool, "--work", work, "--recipe", "raw"]) == 0
    train = ["train", "--out", run, "--pool", pool, "--work", work, "--subset", "raw"]
    train += ["--model", str(tmp_path / "vit-nano.json"), "--samples", "16", "--checkpoints", "1"]
    train += ["--batch-size", "8", "--workers", "0", "--device", "cpu", "--texts", "raw=1"]
    assert main([*train, "--open-clip", "--lr-scheduler const"]) == 0
    assert capsys.readouterr().out.strip().endswith("run/checkpoints/epoch_latest.pt")
    assert main(["eval", run, "--evalsets", "embedded"]) == 0
    shown = capsys.readouterr().out
    assert "wds_tuxpaint-classes_test" in shown
    assert "Average" not in shown
    assert "contains a run with different settings" in error_of(train, capsys)


def test_missing_sets_are_named_with_the_command_that_fetches_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = open_clip_folder(tmp_path / "model", MODEL)
    sets, out = str(tmp_path / "sets"), str(tmp_path / "out")
    write_classification(tmp_path / "sets/wds_cifar10_test", [0, 1, 2, 3, 4, 5])
    where = ["--evalsets", sets, "--out", out, "--device", "cpu"]
    assert main(["eval", model, "--tasks", "cifar10,mnist,gtsrb", *where]) == 0
    shown = capsys.readouterr().out
    assert f"capmix evalsets fetch --out {sets} --tasks mnist,gtsrb" in shown
    assert "Average of 1 of 38" in shown
    assert "small bird" not in shown
    assert main(["eval", model, "--tasks", "cifar10", *where, "--classes"]) == 0
    assert "cifar10  small bird" in capsys.readouterr().out
    assert "not a DataComp task" in error_of(["eval", model, "--tasks", "x", *where], capsys)
    assert main(["evalsets", "list", "--out", sets]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 40
    assert [line.split()[1] for line in listed if line.startswith("found")] == ["cifar10"]
    assert "'x' is not a DataComp task" in error_of(["evalsets", "fetch", "--tasks", "x"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "o"], "pass --data SHARDS, or --pool"),
        (["train", "--out", "o", "--data", "d", "--subset", "s"], "pass --data SHARDS"),
        (
            ["train", "--out", "o", "--data", "d", "--batch-size", "0"],
            "--batch-size: expected",
        ),
        (
            ["train", "--out", "o", "--data", "d", "--texts", "raw"],
            "such as raw=0.5",
        ),
        (
            ["train", "--out", "o", "--data", "d::e", "--data-weights", "1"],
            "1 weights for 2 directories",
        ),
        (
            ["train", "--out", "o", "--data", "d", "--data-weights", "x"],
            "found 'x'",
        ),
        (["train", "--out", "o", "--data", "d", "--scale", "huge"], "expected one of"),
        (
            ["probe", "embedded", "--work", "w", "--seeds", "x"],
            "expected an integer",
        ),
        (["eval", "none/tag", "--tasks", "cifar10"], "no evaluation sets found in"),
    ],
)
def test_what_is_wrong_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(arguments, capsys)


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainSettings] = []

    def note(settings: TrainSettings, *_: object) -> str:
        seen.append(settings)
        return "checkpoint"

    monkeypatch.setattr("capmix.training.train.train", note)
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "d", 1, 2)
    line = (
        "train --yes --out o --data d --scale small --seed 3 --loss siglip --samples 130 --exact "
    )
    line += "--no-resample --texts raw=0.5,b=1 --learning-rate 1e-4"
    assert main([*line.split(), "--open-clip=--lock-text --wd 0.1"]) == 0
    assert seen == [
        TrainSettings(
            scale="small", seed=3, loss="siglip", samples=130, exact=True, resample=False,
            texts={"raw": 0.5, "b": 1.0}, learning_rate=1e-4,
            open_clip=["--lock-text", "--wd", "0.1"],
        )
    ]  # fmt: skip
