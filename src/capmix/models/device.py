"""What every backend that loads a model needs: where it runs, and what names its weights."""

import contextlib
import hashlib
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

FINGERPRINT_BYTES = 2**20


def device_and_dtype(device: str, dtype: str) -> tuple[str, Any]:
    """The device and torch dtype that `auto` stands for: a GPU in bfloat16, else CPU in float32."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype != "auto":
        return device, getattr(torch, dtype)
    if not device.startswith("cuda"):
        return device, torch.float32
    return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def fingerprint(model: str) -> str | None:
    """16 hex digits over the config and both ends of the weights of a local folder or file.

    None where `model` is neither: a hub id is named by its revision.
    """
    path = Path(model)
    if path.is_dir():
        files = sorted([*path.glob("*.json"), *path.glob("*.safetensors")])
    elif path.is_file():
        files = [path]
    else:
        return None
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(file.name.encode() + stream.read(FINGERPRINT_BYTES))
            stream.seek(max(0, file.stat().st_size - FINGERPRINT_BYTES))
            total.update(stream.read())
    return total.hexdigest()[:16]


def input_side(image_processor: Any) -> int | None:
    """The side in pixels to which a processor of transformers brings an image; None if it varies.

    Of a shape that is no square, the longer one.
    """
    size = dict(getattr(image_processor, "size", None) or {})
    if getattr(image_processor, "do_resize", False) and set(size) == {"height", "width"}:
        return max(int(size["height"]), int(size["width"]))
    if getattr(image_processor, "do_resize", False) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return None


def shorter_side(image_processor: Any) -> int | None:
    """To how many pixels a processor of transformers brings the shorter side of an image; None
    where it bounds the longer one."""
    size = dict(getattr(image_processor, "size", None) or {})
    only_shorter = getattr(image_processor, "do_resize", False) and set(size) == {"shortest_edge"}
    return int(size["shortest_edge"]) if only_shorter else None


def provenance(
    packages: Iterable[str], device: str, batch_size: int, compiled: bool = False
) -> dict[str, Any]:
    """What a model ran with, for markers: versions, device, batch size, compiled or not.

    It never decides whether a part is up to date.
    """
    versions = {}
    for name in ("capmix", *packages):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "versions": versions,
        "device": _device_name(device),
        "batch_size": batch_size,
        "compiled": compiled,
    }


def _device_name(device: str) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and device.startswith("cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(device))
    return f"{device} ({platform.machine()})" if device == "cpu" else device
