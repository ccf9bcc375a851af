"""Helpers for backends that load a model: device, dtype, fingerprint of weights, provenance."""

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
    """Resolve `auto` and return the device and the torch dtype.

    `auto` is a GPU with bfloat16, or with float16 if the GPU only emulates bfloat16 (compute
    capability below 8.0, such as T4 and V100), else the CPU with float32.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype != "auto":
        return device, getattr(torch, dtype)
    if not device.startswith("cuda"):
        return device, torch.float32
    return device, torch.bfloat16 if _has_bfloat16(device) else torch.float16


def _has_bfloat16(device: str) -> bool:
    import torch

    try:
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    except (RuntimeError, ValueError, AssertionError):  # no such GPU: loading the model reports it
        return False


def fingerprint(model: str) -> str | None:
    """Return a digest (16 hex digits) of a local model folder or file.

    It covers the names, and the first and last FINGERPRINT_BYTES, of the config and weight files.
    Returns None if `model` is not a local path: a Hub model is identified by its revision.
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
    """Return the side in pixels to which a transformers processor resizes images.

    For a target that is not square, this is the longer side. Returns None if the size varies.
    """
    size = dict(getattr(image_processor, "size", None) or {})
    if getattr(image_processor, "do_resize", False) and set(size) == {"height", "width"}:
        return max(int(size["height"]), int(size["width"]))
    if getattr(image_processor, "do_resize", False) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return None


def shorter_side(image_processor: Any) -> int | None:
    """Return the length in pixels to which a transformers processor resizes the shorter side.

    Returns None if the processor does not resize by the shorter side.
    """
    size = dict(getattr(image_processor, "size", None) or {})
    only_shorter = getattr(image_processor, "do_resize", False) and set(size) == {"shortest_edge"}
    return int(size["shortest_edge"]) if only_shorter else None


def provenance(
    packages: Iterable[str], device: str, batch_size: int, compiled: bool = False
) -> dict[str, Any]:
    """Return the environment of a run for markers: versions, device, batch size, compiled or not.

    Provenance does not affect whether a part is up to date.
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
