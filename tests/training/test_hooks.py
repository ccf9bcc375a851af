"""Both versions of the open_clip trainer are detected and get the arguments they expect."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capmix.errors import UserError
from capmix.training.hooks import (
    MAIN,
    RELEASE,
    Waited,
    _get_data,
    _train_one_epoch,
    trainer_of,
)
from capmix.training.run import RunFolder
from capmix.training.stream import EpochPlan, SampleTally, Stopped


def of_release(
    model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, scaler: Any, scheduler: Any,
    dist_model: Any, args: Any, tb_writer: Any = None,
) -> None:  # fmt: skip
    """open_clip 3.3.0."""
    for images, _ in data["train"].dataloader:
        assert images.shape == (2, 3)
    for name, value in (("data_time", 0.0), ("samples_per_second", 9.0), ("scale", 14.0),
                        ("lr", 0.1), ("loss", 2.5)):  # fmt: skip
        tb_writer.add_scalar(f"train/{name}", value, epoch)


def of_main(state: Any, data: Any, args: Any, tb_writer: Any = None) -> None:
    """open_clip's main branch, 4.2.0.dev0."""
    for batch in data["train"].dataloader:
        assert batch["image"].shape == (2, 3)
        assert batch["text"].shape == (2, 4)
    for name, value in (("data_time", 0.0), ("samples_per_second", 9.0), ("logit_scale", 14.0),
                        ("lr", 0.1), ("contrastive_loss", 2.5), ("loss", 2.5)):  # fmt: skip
        tb_writer.add_scalar(f"train/{name}", value, state.epoch)
    tb_writer.add_scalar("train/loss_epoch_avg", 2.5, state.epoch)


def test_the_installed_trainer_is_one_of_them() -> None:
    from open_clip_train.train import train_one_epoch

    assert trainer_of(train_one_epoch) is RELEASE
    assert trainer_of(of_release) is RELEASE
    assert trainer_of(of_main) is MAIN


def test_a_trainer_of_a_third_form_is_named() -> None:
    def other(task: Any, loader: Any) -> None: ...

    with pytest.raises(UserError, match=r"train_one_epoch\(task, loader\).*3\.3\.0"):
        trainer_of(other)


@pytest.mark.parametrize("theirs", [of_release, of_main])
def test_an_epoch_of_either_form_writes_the_same_line(theirs: Any, tmp_path: Path) -> None:
    trainer = trainer_of(theirs)
    pairs = [(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64))]
    loader = Waited(pairs, EpochPlan([2], 1), 1, trainer)
    data = {"train": SimpleNamespace(dataloader=loader)}
    args = SimpleNamespace(
        seed=0, rank=0, accum_freq=1, world_size=1, epochs=1, distributed=False, device="cpu"
    )
    run = RunFolder(tmp_path)
    ours = _train_one_epoch(theirs, run, SampleTally(), trainer)
    if theirs is of_release:
        ours(None, data, None, 0, None, None, None, None, args, tb_writer=None)
    else:
        ours(SimpleNamespace(epoch=0), data, args, tb_writer=None)
    (line,) = run.metrics.read_text().splitlines()
    assert '"loss": 2.5, "learning_rate"' in line
    assert '"logit_scale": 14.0' in line
    assert '"samples": 2' in line


def test_the_losses_of_a_coca_are_apart_in_the_lines_of_the_main_branch(tmp_path: Path) -> None:
    def coca(state: Any, data: Any, args: Any, tb_writer: Any = None) -> None:
        terms = {"contrastive_loss": 0.5, "caption_loss": 2.0, "loss": 2.5}
        for name, value in (
            {"samples_per_second": 9.0, "logit_scale": 1.0, "lr": 0.1} | terms
        ).items():
            tb_writer.add_scalar(f"train/{name}", value, state.epoch)

    data = {"train": SimpleNamespace(dataloader=Waited([], EpochPlan([2], 1), 1, MAIN))}
    args = SimpleNamespace(
        seed=0, rank=0, accum_freq=1, world_size=1, epochs=1, distributed=False, device="cpu"
    )
    run = RunFolder(tmp_path)
    ours = _train_one_epoch(coca, run, SampleTally(), trainer_of(coca))
    ours(SimpleNamespace(epoch=0), data, args, tb_writer=None)
    assert '"loss": 2.5, "contrastive_loss": 0.5, "caption_loss": 2.0' in run.metrics.read_text()


def test_a_worker_that_stopped_says_why() -> None:
    loader = Waited([Stopped("no image can be decoded")], EpochPlan([2], 1), 1)
    with pytest.raises(UserError, match="^no image can be decoded$"):
        list(loader)


@pytest.mark.parametrize("draws_shards", [True, False])
@pytest.mark.parametrize(("device", "pins"), [("cuda:0", True), ("cpu", False)])
def test_batches_for_a_gpu_are_pinned(
    draws_shards: bool, device: str, pins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer copies with non_blocking, which has an effect only from page-locked memory."""
    made: list[dict[str, Any]] = []

    def loader(_: Any, **options: Any) -> list[Any]:
        made.append(options)
        return []

    monkeypatch.setattr("capmix.training.hooks.DataLoader", loader)
    monkeypatch.setattr("capmix.training.passes.DataLoader", loader)
    settings: Any = SimpleNamespace(exact=False, draws_shards=draws_shards, seed=0, texts=None)
    args = SimpleNamespace(
        train_data="shards", train_num_samples=8, batch_size=2, world_size=1, workers=2,
        accum_freq=1, rank=0, device=device,
    )  # fmt: skip
    source: Any = SimpleNamespace(shards=["0"])
    hook = _get_data(
        lambda *_, **__: {}, settings, source, SampleTally(), RELEASE, RunFolder(tmp_path)
    )
    hook(args, (None, None))
    assert [one["pin_memory"] for one in made] == [pins] * (1 if draws_shards else 2)
