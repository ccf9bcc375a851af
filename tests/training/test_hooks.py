"""Both versions of the open_clip trainer are detected and get the arguments they expect."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capmix.errors import UserError
from capmix.training.hooks import MAIN, RELEASE, Waited, _train_one_epoch, trainer_of
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
    assert '"loss": 2.5' in line
    assert '"logit_scale": 14.0' in line
    assert '"samples": 2' in line


def test_a_worker_that_stopped_says_why() -> None:
    loader = Waited([Stopped("no image can be decoded")], EpochPlan([2], 1), 1)
    with pytest.raises(UserError, match="^no image can be decoded$"):
        list(loader)
