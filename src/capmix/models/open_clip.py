"""Load open_clip models, given as `ARCHITECTURE/TAG`, `local-dir:FOLDER` or `hf-hub:ID`.

TAG is a pretrained tag or a checkpoint file.
"""

import os
from collections.abc import Sequence
from typing import Any

from capmix.errors import UserError
from capmix.models.hub import Connection, check_hub, connect_to_hub
from capmix.models.known import hub_id_of
from capmix.models.registry import require

HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
SCHEMES = ("local-dir:", HUB)
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_open_clip(
    name: str, device: str, dtype: Any, logit_bias: float | None = None
) -> tuple[Any, Any, Any]:
    """Load a model. Returns the model in evaluation mode, its inference transform, its tokenizer.

    Set `logit_bias` for checkpoints trained with SigLIP's loss, whose models have this parameter.
    Raises UserError if the model cannot be loaded.
    """
    require(["torch", "open_clip"], f"model {name}", "open_clip")
    architecture, _, tag = (name, "", "") if name.startswith(SCHEMES) else name.partition("/")
    is_checked = check_open_clip(name)
    uses_hub = not is_checked and bool(tag) and not os.path.isfile(tag)
    connection = connect_to_hub() if uses_hub else None  # connects during the slow import below
    import open_clip

    if not name.startswith(SCHEMES):
        _check_names(name, architecture, tag)
    if uses_hub:
        _check_tag(name, architecture, tag, connection)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=tag or None,
            precision=PRECISIONS[str(dtype).removeprefix("torch.")],
            device=device,
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
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


def weights_path(name: str) -> str:
    """Return the part of a model's name that may be a local path of its weights.

    For a Hub id or a pretrained tag, the returned path does not exist.
    """
    scheme = next((s for s in SCHEMES if name.startswith(s)), None)
    return name.removeprefix(scheme) if scheme else name.partition("/")[2]


def check_open_clip(name: str) -> bool:
    """Check a model whose Hub repository is known without importing open_clip, which takes seconds.

    Returns false if the repository is not known. Raises UserError if it is known, but the weights
    are neither downloaded nor available (see hub.py).
    """
    hub_id = name.removeprefix(HUB) if name.startswith(HUB) else hub_id_of(name)
    if hub_id is not None:
        check_hub(hub_id, f"model {name}", file=CONFIG)
    return hub_id is not None


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
