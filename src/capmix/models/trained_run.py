"""The directory of a training run as a model: `run:DIRECTORY`, written by `capmix train`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.models.architectures import PARTS, check_config
from capmix.models.vocabulary import merges_digest, with_merges
from capmix.storage.json_text import parse_object

RUN, OPEN_CLIP = "run:", "open_clip:"
ABOUT = "run.json"
CHECKPOINT = "checkpoints/epoch_latest.pt"
MERGES = "bpe_merges.txt.gz"  # the model's own BPE merges, if it has some


@dataclass(frozen=True)
class TrainedRun:
    """A run with a checkpoint. `config` is None for an architecture of open_clip.

    A bpe_path in `config` is the run's own copy of the merges, if it has one.
    """

    path: Path
    model: str
    config: dict[str, Any] | None
    is_finished: bool

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
    path = Path(directory).resolve()
    run = TrainedRun(
        path,
        about["model"],
        _with_own_merges(path, about),
        bool(about.get("finished")),
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
    is_whole &= isinstance(about.get("tokenizer"), str | None)
    is_whole &= not isinstance(config, dict) or config.keys() >= PARTS
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


def _with_own_merges(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config with the run's copy of its merges. Raises UserError if they are others."""
    config, digest = about["config"], about.get("tokenizer")
    if config is None or digest is None:  # no merges, or a run of an older capmix
        found: dict[str, Any] | None = config
        return found
    if (path / MERGES).is_file():
        config = with_merges(config, str(path / MERGES))
    if merges_digest(config) != digest:
        raise damaged(path, MERGES, ValueError("other merges than the run was trained with"))
    return dict(config)
