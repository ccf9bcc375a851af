"""Training in a separate process: settings arrive unchanged, errors return as one line."""

import json
from pathlib import Path

import pytest
from samples import write_pool

from capmix.errors import UserError
from capmix.training.launch import RESULT, TrainingData, launch, main
from capmix.training.pairs import ExportedShards, PoolSubset
from capmix.training.scales import TrainSettings
from capmix.workspace import open_workspace

SETTINGS = TrainSettings(
    scale="small", seed=3, loss="siglip", samples=128, exact=False, resample=False,
    texts={"raw": 0.5, "b": 1.0}, learning_rate=1e-4, open_clip=["--lock-text", "--wd", "0.1"],
)  # fmt: skip


def test_settings_go_through_json_and_come_back() -> None:
    text = json.dumps(SETTINGS.model_dump(mode="json"))
    assert TrainSettings(**json.loads(text)) == SETTINGS


def test_data_of_both_kinds(tmp_path: Path) -> None:
    pool, work = str(write_pool(tmp_path / "pool", 2, 3)), str(tmp_path / "w")
    open_workspace(pool, work).mix("raw")
    shards = TrainingData([pool], [2.0]).source(TrainSettings())
    assert isinstance(shards, ExportedShards)
    assert shards.weights == [2.0, 2.0]
    subset = TrainingData(pool=pool, work=work, subset="raw").source(TrainSettings())
    assert isinstance(subset, PoolSubset)
    assert list(subset.shards) == ["00000", "00001"]
    with pytest.raises(UserError, match="no captions of source 'b'"):
        TrainingData(pool=pool, work=work, subset="raw").source(SETTINGS)


def test_an_error_of_the_child_comes_back(tmp_path: Path) -> None:
    data = TrainingData([str(write_pool(tmp_path / "pool", 1, 2))])
    settings = TrainSettings(samples=16, batch_size=8, checkpoints=3, device="cpu", exact=True)
    with pytest.raises(UserError, match="^--exact: 16 samples are not divisible by 3 checkpoints$"):
        launch(settings, data, str(tmp_path / "run"))


def test_the_childs_side(tmp_path: Path) -> None:
    job = {
        "settings": SETTINGS.model_dump(mode="json"),
        "data": {"directories": [str(tmp_path / "none")]},
        "out": str(tmp_path / "run"),
        "max_failures": 0.01,
        "messages": False,
        "title": "train",
        "processes": 1,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert main(str(tmp_path / "job.json")) == 2
    assert "no such file" in json.loads((tmp_path / RESULT).read_text())["error"]
