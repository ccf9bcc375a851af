"""The directory of a training run as a model: `run:DIRECTORY`, written by `capmix train`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.models.architectures import check_config, merges_digest, merges_path
from capmix.storage.json_text import parse_object

RUN, OPEN_CLIP = "run:", "open_clip:"
ABOUT = "run.json"
CHECKPOINT = "checkpoints/epoch_latest.pt"
MERGES = "bpe_merges.txt.gz"  # the model's own BPE merges, if it has some


@dataclass(frozen=True)
class TrainedRun:
    """A run with a checkpoint. `config` is None for an architecture of open_clip."""

    path: Path
    model: str
    config: dict[str, Any] | None
    is_finished: bool
    merges: Path | None

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT


def open_run(directory: str, unfinished: bool = False) -> TrainedRun:
    """Read a run. Raises UserError if it is damaged, or has no checkpoint, or is not finished.

    With `unfinished`, a run that is not finished is accepted.
    """
    if not directory:
        raise UserError("model run: expected a directory of `capmix train`, for example run:RUNS/a")
    about = read_run(directory)
    path, config = Path(directory).resolve(), about["config"]
    run = TrainedRun(
        path,
        about["model"],
        config,
        bool(about.get("finished")),
        _merges(path, about),
    )
    if not run.checkpoint.is_file():
        raise UserError(f"{directory}: no checkpoint yet; `capmix train` writes {run.checkpoint}")
    if not run.is_finished and not unfinished:
        raise UserError(
            f"{directory}: training is not finished, so the weights still change; rerun its "
            "`capmix train` command to finish it"
        )
    return run


def read_run(directory: str) -> dict[str, Any]:
    """Read the identity of a run (training.train.about_run) from its directory.

    Raises UserError if there is none, or if it is damaged.
    """
    about = read_about(Path(directory))
    if about is None:
        raise UserError(f"{directory}: no run.json; expected an output directory of `capmix train`")
    settings, config = about.get("settings"), about.get("config", "")
    is_whole = isinstance(about.get("model"), str) and isinstance(config, dict | None)
    is_whole &= isinstance(about.get("merges"), str | None)
    if not is_whole or not isinstance(settings, dict) or "loss" not in settings:
        raise UserError(
            f"{directory}: run.json is damaged (expected model, config and settings). Restore "
            "the file or choose another run"
        )
    check_config(f"{directory}: run.json", config or {})
    return about


def read_about(path: Path) -> dict[str, Any] | None:
    """Read run.json; None if it does not exist. Raises UserError if it is damaged."""
    try:
        return parse_object((path / ABOUT).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValueError) as error:
        raise damaged(path, ABOUT, error) from error


def damaged(path: Path, name: str, error: Exception) -> UserError:
    """Return the error for a damaged file of a run."""
    why = "a directory" if isinstance(error, OSError) else error
    return UserError(
        f"run {path}: {name} is damaged ({why}). Restore the file or train into another directory"
    )


def run_directory(model: str) -> str | None:
    """Return the directory of `run:DIRECTORY` or `open_clip:run:DIRECTORY`; None for others."""
    name = model.removeprefix(OPEN_CLIP)
    return name.removeprefix(RUN) if name.startswith(RUN) else None


def recorded_model(model: str) -> str:
    """Return the model's name for markers: of a run, only its last component, so that it may move.

    Any other name is returned unchanged.
    """
    directory = run_directory(model)
    return model if directory is None else f"{RUN}{os.path.basename(os.path.abspath(directory))}"


def _merges(path: Path, about: dict[str, Any]) -> Path | None:
    """Return the file of the run's BPE merges. Raises UserError if it is not the recorded one."""
    digest, config = about.get("merges"), about["config"] or {}
    if digest is None or not config:  # no merges, or a run that did not copy them
        return merges_path(config, Path())
    file = path / MERGES
    if merges_digest(f"run {path}", config, file) != digest:
        raise damaged(path, MERGES, ValueError("other merges than the run was trained with"))
    return file
