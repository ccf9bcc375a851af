"""Train small models into directories of runs."""

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from samples import write_pool

from capmix.training.pairs import ExportedShards
from capmix.training.scales import TrainSettings
from capmix.training.train import train

MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>"]
VOCABULARY = 2 * 256 + len(MERGES) + 3  # an empty line, start and end
NANO = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {
        "context_length": 12, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1,
        "tokenizer_kwargs": {"bpe_path": "small.txt.gz"},
    },
}  # fmt: skip
NANO_COCA = NANO | {
    "vision_cfg": NANO["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": NANO["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {
        "context_length": 12, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1,
        "attn_pooler_heads": 2,
    },
    "custom_text": True,
}  # fmt: skip


def write_config(folder: Path, name: str, config: dict[str, Any]) -> Path:
    """Write a config, and beside it the BPE merges that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(["#version: 0.2", *MERGES, ""])
    (folder / "small.txt.gz").write_bytes(gzip.compress(text.encode()))
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder / f"{name}.json"


def random_coca(file: Path) -> list[str]:
    """Write random weights of NANO_COCA; return the arguments of open_clip that begin with them.

    open_clip leaves the projection of a new CoCa's text decoder uninitialised.
    """
    torch.manual_seed(0)
    model = open_clip.CoCa(**{k: v for k, v in NANO_COCA.items() if k != "custom_text"})
    save_file({k: torch.randn_like(v) * 0.2 for k, v in model.state_dict().items()}, file)
    return ["--pretrained", str(file)]


def train_run(folder: Path, config: Path, run: Path, **options: Any) -> Path:
    """Train on a small pool in `folder`; return the checkpoint."""
    shards = folder / "shards"
    pool = str(shards if shards.exists() else write_pool(shards, 1, 8))
    settings = TrainSettings(
        model=str(config), batch_size=8, samples=8, checkpoints=1, workers=0, device="cpu",
        log_every=1, **options,
    )  # fmt: skip
    return Path(train(settings, ExportedShards([pool]), str(run)))
