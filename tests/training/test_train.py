import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sample_members, tar_bytes, write_pool

from capmix.errors import UserError
from capmix.evaluation.results import evaluate
from capmix.training.pairs import ExportedShards
from capmix.training.run import RunFolder
from capmix.training.scales import TrainSettings
from capmix.training.train import read_run, train

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
        if len(saved) == 3:  # in the third epoch, before its checkpoint is renamed
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


@pytest.mark.parametrize("workers", [0, 2])
def test_checkpoints_and_a_resume_in_the_middle_of_a_pass_lose_no_sample(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """Two passes over 36 samples in three checkpoints of 24, with a kill after the second."""
    import open_clip_train.main as main

    from capmix.training import hooks

    seen: list[list[Any]] = []

    class Watched(hooks.Waited):
        def __iter__(self) -> Any:
            for images, tokens in super().__iter__():
                seen[-1] += [row.numpy().tobytes() for row in tokens]
                yield images, tokens

    monkeypatch.setattr(hooks, "Waited", Watched)
    changes = {"samples": 72, "checkpoints": 3, "exact": True, "workers": workers}
    changes |= {"open_clip": ["--force-patch-dropout", "0.5"]}
    passes = settings.model_copy(update=changes)
    seen.append([])
    whole = train(passes, shards, str(tmp_path / "whole"))
    save, saved = torch.save, []

    def save_and_die(value: Any, path: str) -> None:
        save(value, path)
        saved.append(path)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(main.torch, "save", save_and_die)
    seen.append([])
    with pytest.raises(KeyboardInterrupt):
        train(passes, shards, str(tmp_path / "broken"))
    monkeypatch.setattr(main.torch, "save", save)
    seen.append([])
    resumed = train(passes, shards, str(tmp_path / "broken"))
    together, broken, rest = seen
    assert len(set(together[:36])) == len(set(together[36:])) == 36
    assert broken + rest == [*together[:48], *together[24:]]  # the second checkpoint has no name
    assert all(torch.equal(a, b) for a, b in zip(
        weights(whole).values(), weights(resumed).values(), strict=True))  # fmt: skip


def test_a_run_that_goes_on_with_other_workers_begins_a_pass(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    quick = settings.model_copy(update={"samples": 48, "checkpoints": 2})
    train(quick, shards, str(run))
    state = torch.load(run / "checkpoints/epoch_latest.pt", weights_only=True)
    torch.save(state | {"epoch": 1}, run / "checkpoints/epoch_latest.pt")
    about = json.loads((run / "run.json").read_text())
    del about["finished"]
    (run / "run.json").write_text(json.dumps(about))
    train(quick.model_copy(update={"workers": 3}), shards, str(run))
    first, second = json.loads((run / "position-0.json").read_text()).values()
    assert [first[name] for name in ("begun", "number", "taken")] == [0, 0, [3]]
    assert [second[name] for name in ("begun", "number", "taken")] == [1, 0, [1, 1, 1]]


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
    with pytest.raises(UserError, match="contains a run with different data"):
        train(quick, other, str(run))
    with pytest.raises(UserError, match="contains a run with different settings"):
        train(quick.model_copy(update={"seed": 1}), shards, str(run))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.txt").write_text("precious")
    with pytest.raises(UserError, match="is not a training run and not empty"):
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


def test_failures_over_the_bound_are_told_whenever_the_run_is_asked_for(
    settings: TrainSettings, tmp_path: Path
) -> None:
    members = [*sample_members("a", 1), ("b.jpg", b"broken"), ("b.txt", b"x")]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/00000.tar").write_bytes(tar_bytes(members))
    source = ExportedShards([str(tmp_path / "shards")])
    quick = settings.model_copy(update={"samples": 16, "checkpoints": 2})
    for _ in range(2):
        with pytest.raises(UserError, match="samples failed, more than the limit of 1.0%"):
            train(quick, source, str(tmp_path / "run"))
    lines = (tmp_path / "run/failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["b"]
    counts = json.loads((tmp_path / "run/counts.json").read_text())
    assert [ok for ok, _ in counts.values()] == [8, 8]
    assert train(quick, source, str(tmp_path / "run"), max_failures=1.0)


def test_what_a_kill_left_is_taken_up(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    """An incomplete start, a truncated line, and the end before the run is marked finished."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.tmp").write_text("{")
    (run / "run.json").write_text('{"model": "other"}')
    (run / "run.lock").touch()
    quick = settings.model_copy(update={"samples": 16, "checkpoints": 2})
    train(quick, shards, str(run))
    whole = metrics(run)
    state = torch.load(run / "checkpoints/epoch_latest.pt", weights_only=True)
    torch.save(state | {"epoch": 1}, run / "checkpoints/epoch_latest.pt")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 0, "st')
    about = json.loads((run / "run.json").read_text())
    del about["finished"]
    (run / "run.json").write_text(json.dumps(about))
    train(quick, shards, str(run))
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in whole] == [1, 2]
    assert read_run(str(run))["finished"]


def hold(folder: str, told: Any, release: Any) -> None:
    with RunFolder(Path(folder)).claimed({}):
        told.set()
        release.wait(60)


def test_two_processes_do_not_train_in_one_directory(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    told, release = context.Event(), context.Event()
    run = tmp_path / "run"
    process = context.Process(target=hold, args=(str(run), told, release))
    process.start()
    assert told.wait(60)
    with pytest.raises(UserError, match="another process is training there"):
        train(settings, shards, str(run))
    with pytest.raises(UserError, match="another process is training there"):
        RunFolder(run).remove()
    release.set()
    process.join()
    RunFolder(run).remove()
    assert not run.exists()


def test_a_full_disk_is_told_and_the_run_goes_on(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip_train.main as main

    def full(value: Any, path: str) -> None:
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")

    quick = settings.model_copy(update={"samples": 16, "checkpoints": 1})
    with monkeypatch.context() as patch:
        patch.setattr(main.torch, "save", full)
        with pytest.raises(UserError, match="rerun the same command to resume"):
            train(quick, shards, str(tmp_path / "run"))
    assert Path(train(quick, shards, str(tmp_path / "run"))).exists()


def test_samples_of_exact_epochs_are_counted_as_they_are(
    shards: ExportedShards, settings: TrainSettings, tmp_path: Path
) -> None:
    changes = {"samples": 40, "checkpoints": 2, "exact": True, "batch_size": 16}
    train(settings.model_copy(update=changes), shards, str(tmp_path / "run"))
    assert [line["samples"] for line in metrics(tmp_path / "run")] == [16, 20, 36, 40]


def test_under_srun_the_batch_is_that_of_all_devices(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from capmix.training import train as module

    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert module.place() == (3, 4)
    drawing = settings.model_copy(update={"resample": True})
    with pytest.raises(UserError, match="multiple devices must be GPUs"):
        train(drawing, shards, str(tmp_path / "run"))


class Hostile:
    def __init__(self, target: str):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


def test_a_pickle_in_a_shard_runs_nothing(settings: TrainSettings, tmp_path: Path) -> None:
    """webdataset's decode, which open_clip's loader calls, unpickles such members."""
    data = pickle.dumps(Hostile(str(tmp_path / "proof")))
    members = sample_members("a", 1) + [(f"a.{end}", data) for end in ("pickle", "pyd", "pkl")]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/00000.tar").write_bytes(tar_bytes(members))
    quick = settings.model_copy(update={"samples": 8, "checkpoints": 1})
    assert train(quick, ExportedShards([str(tmp_path / "shards")]), str(tmp_path / "run"))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "ViT-Z"}, "unknown open_clip model"),
        ({"model": "none.json"}, "not a readable JSON file"),
        ({"workers": 9}, "3 shards are too few for 9"),
        ({"workers": 9, "resample": False, "scale": "debug"}, "3 shards are too few"),
        ({"texts": {"raw": 0.0}}, "not all 0"),
        ({"texts": {"nobody": 1.0}}, "no text of source 'nobody'"),
        ({"exact": True, "samples": 65}, "are not divisible by 4 checkpoints"),
        ({"samples": 3}, "3 samples are fewer than 4 checkpoints"),
        ({"samples": 16, "accumulate": 4}, "one step accumulates 4"),
        ({"open_clip": ["--force-image-size", "32"]}, "would build a different model"),
        ({"open_clip": ["--no-such"]}, "rejected these arguments"),
        ({"report_to": "tensorbord"}, "expected tensorboard or wandb"),
        ({"device": "cuda"}, "torch finds no GPU"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(
    shards: ExportedShards,
    settings: TrainSettings,
    tmp_path: Path,
    changes: dict[str, Any],
    told: str,
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=told):
        train(settings.model_copy(update=changes), shards, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


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
