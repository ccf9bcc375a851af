import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sample_members, tar_bytes, write_pool

from capmix.errors import UserError
from capmix.evaluate.results import evaluate
from capmix.train.pairs import ExportedShards
from capmix.train.scales import TrainSettings
from capmix.train.train import read_run, train

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ExportedShards:
    return ExportedShards([str(write_pool(tmp_path_factory.mktemp("shards"), 3, 12))])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    path = tmp_path_factory.mktemp("model") / "vit-nano.json"
    path.write_text(json.dumps(MODEL))
    return TrainSettings(
        model=str(path), batch_size=8, samples=64, checkpoints=4, log_every=1, workers=0,
        device="cpu",
    )  # fmt: skip


def weights(checkpoint: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip_train.main as main

    whole = train(settings, shards, str(tmp_path / "whole"))
    save, saved = torch.save, []

    def save_and_die(value: Any, path: str) -> None:
        save(value, path)
        saved.append(path)
        if len(saved) == 3:  # in the third epoch, before its checkpoint has its name
            raise KeyboardInterrupt

    monkeypatch.setattr(main.torch, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(settings, shards, str(tmp_path / "broken"))
    monkeypatch.setattr(main.torch, "save", save)
    assert len(metrics(tmp_path / "broken")) == 6
    resumed = train(settings, shards, str(tmp_path / "broken"))
    assert all(torch.equal(a, b) for a, b in zip(
        weights(whole).values(), weights(resumed).values(), strict=True))  # fmt: skip
    steps = [(m["step"], m["epoch"], m["samples"], m["loss"]) for m in metrics(tmp_path / "whole")]
    assert [step for step, *_ in steps] == list(range(1, 9))
    broken = metrics(tmp_path / "broken")
    assert [(m["step"], m["epoch"], m["samples"], m["loss"]) for m in broken] == steps


def test_a_finished_run_is_left_alone_and_another_is_refused(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    quick = settings.model_copy(update={"samples": 16, "checkpoints": 1})
    checkpoint = Path(train(quick, shards, str(run)))
    before = checkpoint.stat().st_mtime_ns
    assert train(quick, shards, str(run)) == str(checkpoint)
    assert checkpoint.stat().st_mtime_ns == before
    other = ExportedShards([str(write_pool(tmp_path / "other", 2, 3))])
    with pytest.raises(UserError, match="holds a run with other data"):
        train(quick, other, str(run))
    with pytest.raises(UserError, match="holds a run with other settings"):
        train(quick.model_copy(update={"seed": 1}), shards, str(run))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        train(quick, shards, str(tmp_path / "thesis"))


def test_siglip_is_trained_exactly_and_evaluated(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    changes = {"loss": "siglip", "exact": True, "samples": 30, "checkpoints": 1, "accumulate": 2}
    checkpoint = train(settings.model_copy(update=changes), shards, str(run))
    assert "logit_bias" in weights(checkpoint)
    assert read_run(str(run))["settings"]["loss"] == "siglip"
    found = evaluate(str(run), None, "embedded", device="cpu")
    assert [line["metric"] for line in found.lines] == ["acc1", "mean_recall@1"]


def test_failures_over_the_bound_are_told_at_the_end(
    settings: TrainSettings, tmp_path: Path
) -> None:
    members = [*sample_members("a", 1), ("b.jpg", b"broken"), ("b.txt", b"x")]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/00000.tar").write_bytes(tar_bytes(members))
    quick = settings.model_copy(update={"samples": 16, "checkpoints": 1})
    with pytest.raises(UserError, match="samples failed, over the bound of 1.0%"):
        train(quick, ExportedShards([str(tmp_path / "shards")]), str(tmp_path / "run"))
    lines = (tmp_path / "run/failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["b"]
    assert read_run(str(tmp_path / "run"))["finished"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "ViT-Z"}, "no model of open_clip"),
        ({"model": "none.json"}, "no JSON file"),
        ({"workers": 9}, "3 shards cannot be shared out among 9"),
        ({"texts": {"raw": 0.0}}, "not all 0"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    changes: dict[str, Any],
    told: str,
) -> None:
    with pytest.raises(UserError, match=told):
        train(settings.model_copy(update=changes), shards, str(tmp_path / "run"))


def test_tensorboard_gets_the_same_numbers(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    quick = settings.model_copy(
        update={"samples": 16, "checkpoints": 1, "report_to": "tensorboard"}
    )
    train(quick, shards, str(tmp_path / "run"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    losses = [round(event.value, 4) for event in events.Scalars("train/loss")]
    assert losses == [round(line["loss"], 4) for line in metrics(tmp_path / "run")]
