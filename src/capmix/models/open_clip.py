"""Load open_clip models: `ARCHITECTURE/TAG`, `local-dir:FOLDER`, `hf-hub:ID` or `run:DIRECTORY`.

ARCHITECTURE is a name or a .json config file of open_clip, TAG a pretrained tag or a checkpoint
file, DIRECTORY an output directory of `capmix train`.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from capmix.errors import UserError
from capmix.models.architectures import (
    check_config,
    know_config,
    read_config,
)
from capmix.models.device import fingerprint
from capmix.models.hub import Connection, check_hub, connect_to_hub
from capmix.models.known import hub_id_of
from capmix.models.registry import require
from capmix.models.trained_run import RUN, open_run, recorded_model
from capmix.models.vocabulary import check_vocabulary, merges_digest, with_merges

HUB = "hf-hub:"
CONFIG, JSON = "open_clip_config.json", ".json"
NUMPY = (".npz", ".npy")  # big_vision's checkpoints, which open_clip reads without pickles
SCHEMES = ("local-dir:", HUB)
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
SIGLIP_BIAS = -10.0  # initial value of open_clip's trainer; overwritten by the checkpoint's value


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint file with its architecture: a config, or a name of open_clip."""

    architecture: str
    config: dict[str, Any] | None
    weights: str

    def register(self) -> str:
        """Return the architecture's name in open_clip, where its config is registered."""
        if self.config is None:
            return self.architecture
        return know_config(self.architecture, self.config)

    def digest(self) -> str:
        """Return 16 hex digits that identify weights, config and merges, wherever they are."""
        with open(self.weights, "rb") as stream:
            weights = hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
        config, merges = self.config, merges_digest(self.config)
        if config is not None and merges is not None:
            config = with_merges(config, merges)
        about = json.dumps([weights, self.architecture, config], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:16]


def load_open_clip(
    name: str, device: str, dtype: Any, unfinished: bool = False
) -> tuple[Any, Any, Any]:
    """Load a model. Returns the model in evaluation mode, its inference transform, its tokenizer.

    `unfinished` accepts a run that is not finished. Raises UserError if the model cannot be loaded.
    """
    require(["torch", "open_clip"], f"model {name}", "open_clip")
    local = local_model(name, unfinished)
    architecture, _, tag = (name, "", "") if name.startswith(SCHEMES) else name.partition("/")
    if local is not None:
        architecture, tag = local.register(), local.weights
    is_checked = check_open_clip(name, unfinished)
    uses_hub = not is_checked and bool(tag) and not os.path.isfile(tag)
    connection = connect_to_hub() if uses_hub else None  # connects during the slow import below
    import open_clip

    if not name.startswith(SCHEMES):
        _check_names(name, architecture, tag)
    if uses_hub:
        _check_tag(name, architecture, tag, connection)
    try:
        check_config(f"model {name}", open_clip.get_model_config(architecture) or {})
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=tag or None,
            precision=PRECISIONS[str(dtype).removeprefix("torch.")],
            device=device,
            **({"init_logit_bias": SIGLIP_BIAS} if _has_logit_bias(tag) else {}),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except UserError:
        raise
    except Exception as error:  # open_clip, the Hub and torch raise various types here
        first = " ".join(str(error).split())[:300]
        raise UserError(f"model {name}: cannot be loaded ({first})") from error
    return model.eval(), preprocess, tokenizer


def input_side(model: Any) -> int:
    """Return the longer side of the model's input image, in pixels."""
    size = model.visual.image_size
    return max(size) if isinstance(size, Sequence) else int(size)


def shorter_side(model: Any) -> int | None:
    """Return the length in pixels to which the model's transform resizes the shorter side.

    Returns None if the transform does not resize by the shorter side.
    """
    about = getattr(model.visual, "preprocess_cfg", None) or {}
    return input_side(model) if about.get("resize_mode", "shortest") == "shortest" else None


def local_model(name: str, unfinished: bool = False) -> LocalModel | None:
    """Return the model of `run:DIRECTORY` or `CONFIG.json/FILE`; None for any other name.

    Raises UserError if the run, the config or a file cannot be used.
    """
    if name.startswith(RUN):
        run = open_run(name.removeprefix(RUN), unfinished)
        return LocalModel(run.model, run.config, str(run.checkpoint))
    start, is_config, file = name.partition(f"{JSON}/")
    if not is_config or name.startswith(SCHEMES):
        return None
    path = Path(f"{start}{JSON}")
    config = read_config(path)
    if not os.path.isfile(file):
        raise UserError(f"model {name}: {file!r} is not a file; expected {path}/CHECKPOINT")
    return LocalModel(path.stem, config, file)


def identity(name: str) -> dict[str, Any]:
    """Return the entries `model` and `weights` of a marker.

    The model of a run is its name without the path, so that it may move. `weights` is a digest of
    local weights and of the config that belongs to them, else None.
    """
    local = local_model(name, unfinished=True)
    weights = fingerprint(weights_path(name)) if local is None else local.digest()
    return {"model": recorded_model(name), "weights": weights}


def weights_path(name: str) -> str:
    """Return the part of a model's name that may be a local path of its weights.

    For a Hub id or a pretrained tag, the returned path does not exist.
    """
    scheme = next((s for s in SCHEMES if name.startswith(s)), None)
    return name.removeprefix(scheme) if scheme else name.partition("/")[2]


def check_open_clip(name: str, unfinished: bool = False, writes_captions: bool = False) -> bool:
    """Check a local model, or one whose Hub repository is known, without importing open_clip.

    The import takes seconds. Returns false if no repository is known. Raises UserError if it is
    known, but the weights are neither downloaded nor available (see hub.py), if a local model
    cannot be used (see local_model), or cannot write captions although `writes_captions`.
    """
    local = local_model(name, unfinished)
    if local is not None:
        if local.config is not None:
            check_vocabulary(local.architecture, local.config)
        if writes_captions and local.config is not None and "multimodal_cfg" not in local.config:
            raise UserError(
                f"captioner {name}: cannot write captions; expected a CoCa model, whose config has "
                "a multimodal_cfg"
            )
        return False
    hub_id = name.removeprefix(HUB) if name.startswith(HUB) else hub_id_of(name)
    if hub_id is not None:
        check_hub(hub_id, f"model {name}", file=CONFIG)
    return hub_id is not None


def _has_logit_bias(file: str) -> bool:
    """Return whether a checkpoint file has the parameter that only SigLIP's loss trains.

    Raises an exception if it contains other objects than tensors and plain values.
    """
    if file.endswith(".safetensors") and os.path.isfile(file):
        from safetensors import safe_open

        with safe_open(file, "pt") as tensors:
            return any(name.endswith("logit_bias") for name in tensors.keys())  # noqa: SIM118
    if not os.path.isfile(file) or file.endswith(NUMPY) or not zipfile.is_zipfile(file):
        return False
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return any(name.endswith("logit_bias") for name in state)


def _check_tag(name: str, architecture: str, tag: str, connection: Connection | None) -> None:
    """Check a model whose Hub repository is known to open_clip. Raises UserError."""
    import open_clip

    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub_id = os.path.dirname(known.get("hf_hub", ""))
    if hub_id:
        check_hub(hub_id, f"model {name}", file=CONFIG, connection=connection)


def _check_names(name: str, architecture: str, tag: str) -> None:
    """Raise UserError for an unknown architecture or tag, or a mismatch of the activation."""
    import open_clip

    if architecture not in open_clip.list_models():
        raise UserError(
            f"model {name}: open_clip has no architecture {architecture!r}; expected "
            "ARCHITECTURE/TAG, for example ViT-L-14-quickgelu/openai"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if not known and not os.path.isfile(tag):
        raise UserError(
            f"model {name}: {tag!r} is neither a pretrained tag of {architecture} "
            f"({', '.join(tags) or 'which has none'}) nor a file"
        )
    has = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if known and bool(known.get("quick_gelu", False)) != has:
        other = architecture.removesuffix("-quickgelu") if has else f"{architecture}-quickgelu"
        trained = "without" if has else "with"
        raise UserError(
            f"model {name}: these weights were trained {trained} QuickGELU, so scores would be "
            f"wrong; use {other}/{tag}"
        )
