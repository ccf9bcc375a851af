"""Models to train: open_clip models by name, or a config file that is registered there."""

from pathlib import Path
from typing import Any

from capmix.models.architectures import know_model as know_model
from capmix.models.architectures import merges_digest, merges_path, with_merges
from capmix.models.architectures import read_config as read_config
from capmix.training.scales import TINY, TrainSettings


def config_file(settings: TrainSettings) -> Path | None:
    """Return the model's .json config file; None for an open_clip model name."""
    name = settings.in_full.model
    if settings.model is None and settings.scale == TINY:
        return Path(__file__).parent / f"{name}.json"
    return Path(name) if name.endswith(".json") else None


def merges_file(path: Path | None) -> Path | None:
    """Return the file of the BPE merges that a config file names; None if there is none."""
    return merges_path(read_config(path), path.parent) if path is not None else None


def merges_of(path: Path | None) -> str | None:
    """Return the digest of the BPE merges of a config file. Raises UserError if not readable."""
    file = merges_file(path)
    if path is None or file is None:
        return None
    return merges_digest(f"model {path}", read_config(path), file)


def trained_config(path: Path | None) -> dict[str, Any] | None:
    """Return the config for open_clip, with the full path of the merges; None without a file."""
    return with_merges(read_config(path), merges_file(path)) if path is not None else None
