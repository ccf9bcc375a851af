"""Models to train: open_clip models by name, or a config file that is registered there."""

import json
import tempfile
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_json
from capmix.training.scales import TINY, TrainSettings
from capmix.training.vocabulary import with_merges_path


def config_file(settings: TrainSettings) -> Path | None:
    """Return the model's .json config file; None for an open_clip model name."""
    name = settings.in_full.model
    if settings.model is None and settings.scale == TINY:
        return Path(__file__).parent / f"{name}.json"
    return Path(name) if name.endswith(".json") else None


def read_config(path: Path) -> dict[str, Any]:
    """Read an open_clip config file. Raises UserError if it is not one."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: not a readable JSON file ({error})") from error
    if not isinstance(value, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= value.keys():
        raise UserError(
            f"model {path}: expected an open_clip config with embed_dim, vision_cfg and text_cfg"
        )
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(value[part], dict):
            raise UserError(f"model {path}: expected a mapping as {part}")
    return with_merges_path(path, value)


def know_model(name: str, config: dict[str, Any] | None) -> None:
    """Register `config` with open_clip; without one, raise UserError if `name` is unknown."""
    import open_clip

    if config is None:
        if name not in open_clip.list_models():
            raise UserError(
                f"--model {name}: unknown open_clip model (and not a .json config file)"
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        path.write_text(json.dumps(config), "utf-8")
        open_clip.add_model_config(path)
