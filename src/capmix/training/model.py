"""Models to train: open_clip models by name, or a config file that is registered there."""

from pathlib import Path

from capmix.models.architectures import know_model as know_model
from capmix.models.architectures import read_config as read_config
from capmix.training.scales import TINY, TrainSettings


def config_file(settings: TrainSettings) -> Path | None:
    """Return the model's .json config file; None for an open_clip model name."""
    name = settings.in_full.model
    if settings.model is None and settings.scale == TINY:
        return Path(__file__).parent / f"{name}.json"
    return Path(name) if name.endswith(".json") else None
