"""Write small random open_clip and transformers models for scoring."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLIP = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
COCA = {
    "embed_dim": 32,
    "vision_cfg": VISION
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "attn_pooler_heads": 2,
    },
    "custom_text": True,
}


def open_clip_folder(folder: Path, model_cfg: dict[str, Any]) -> str:
    """Write a folder in open_clip's layout; return the model name for capmix."""
    torch.manual_seed(0)
    kind = open_clip.CoCa if "multimodal_cfg" in model_cfg else open_clip.CLIP
    model = kind(**{k: v for k, v in model_cfg.items() if k != "custom_text"})
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.15
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 32}
    about = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"
