"""Models of open_clip by name, and those of a config file, which open_clip is told of."""

import json
import tempfile
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.storage.json_text import parse_json
from capmix.training.scales import TINY, TrainSettings


def config_file(settings: TrainSettings) -> Path | None:
    """The .json file of the model, where it is not one that open_clip knows by name."""
    name = settings.in_full.model
    if settings.model is None and settings.scale == TINY:
        return Path(__file__).parent / f"{name}.json"
    return Path(name) if name.endswith(".json") else None


def read_config(path: Path) -> dict[str, Any]:
    """What an open_clip config file holds. Raises UserError where it is none."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"model {path}: no JSON file ({error})") from error
    if not isinstance(value, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= value.keys():
        raise UserError(f"model {path}: expected embed_dim, vision_cfg and text_cfg of open_clip")
    return value


def know_model(name: str, config: dict[str, Any] | None) -> None:
    """Tell open_clip of a model; without a `config`, raise UserError where it knows none such."""
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
