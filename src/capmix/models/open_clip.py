"""Load models of open_clip: `ARCHITECTURE/TAG`, `local-dir:FOLDER` or `hf-hub:ID`.

TAG is a pretrained tag or a checkpoint file.
"""

import os
from collections.abc import Sequence
from typing import Any

from capmix.errors import UserError
from capmix.models.hub import Connection, check_hub, connect_to_hub
from capmix.models.registry import require

HUB = "hf-hub:"
SCHEMES = ("local-dir:", HUB)
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_open_clip(
    name: str, device: str, dtype: Any, logit_bias: float | None = None
) -> tuple[Any, Any, Any]:
    """The model in evaluation mode, its preprocessing for inference, and its tokenizer.

    `logit_bias` is for checkpoints of SigLIP's loss, whose models have such a parameter.
    """
    require(["torch", "open_clip"], f"model {name}", "open_clip")
    architecture, _, tag = (name, "", "") if name.startswith(SCHEMES) else name.partition("/")
    is_remote = name.startswith(HUB) or (bool(tag) and not os.path.isfile(tag))
    connection = connect_to_hub() if is_remote else None  # meanwhile open_clip loads, for seconds
    import open_clip

    if not name.startswith(SCHEMES):
        _check_names(name, architecture, tag)
    if is_remote:
        _check_reached(name, architecture, tag, connection)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=tag or None,
            precision=PRECISIONS[str(dtype).removeprefix("torch.")],
            device=device,
            **({} if logit_bias is None else {"init_logit_bias": logit_bias}),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # open_clip, hubs and torch raise many types here
        first = " ".join(str(error).split())[:300]
        raise UserError(f"model {name}: cannot be loaded ({first})") from error
    return model.eval(), preprocess, tokenizer


def input_side(model: Any) -> int:
    """The longer side of the image that the model reads, in pixels."""
    size = model.visual.image_size
    return max(size) if isinstance(size, Sequence) else int(size)


def shorter_side(model: Any) -> int | None:
    """To how many pixels the model's transform brings the shorter side of an image; None where it
    bounds the longer one."""
    about = getattr(model.visual, "preprocess_cfg", None) or {}
    return input_side(model) if about.get("resize_mode", "shortest") == "shortest" else None


def weights_path(name: str) -> str:
    """Where a model's own weights lie on this disk, if its name says so; else no such path."""
    scheme = next((s for s in SCHEMES if name.startswith(s)), None)
    return name.removeprefix(scheme) if scheme else name.partition("/")[2]


def _check_reached(name: str, architecture: str, tag: str, connection: Connection | None) -> None:
    """Raise UserError for weights that are neither downloaded nor to be had (see hub.py)."""
    import open_clip

    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub_id = os.path.dirname(known.get("hf_hub", ""))
    if name.startswith(HUB):
        hub_id = name.removeprefix(HUB)
    if hub_id:
        check_hub(hub_id, f"model {name}", None, "open_clip_config.json", connection)


def _check_names(name: str, architecture: str, tag: str) -> None:
    """Tell an unknown architecture or tag, and an activation that does not fit the weights."""
    import open_clip

    if architecture not in open_clip.list_models():
        raise UserError(
            f"model {name}: open_clip has no architecture {architecture!r}; expected "
            "ARCHITECTURE/TAG, such as ViT-L-14-quickgelu/openai"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    if not known and not os.path.isfile(tag):
        raise UserError(
            f"model {name}: {tag!r} is neither a pretrained tag of {architecture} "
            f"({', '.join(tags) or 'it has none'}) nor a file"
        )
    has = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if known and bool(known.get("quick_gelu", False)) != has:
        other = architecture.removesuffix("-quickgelu") if has else f"{architecture}-quickgelu"
        trained = "without" if has else "with"
        raise UserError(
            f"model {name}: these weights were trained {trained} QuickGELU and would give wrong "
            f"scores; use {other}/{tag}"
        )
