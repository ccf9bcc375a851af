"""Helpers for backends that load a model: device, dtype, fingerprint of weights, provenance."""

import contextlib
import hashlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from capmix.engine.prefetch import LOCAL_WORKERS

FINGERPRINT_BYTES = 2**20
FEWEST_THREADS, MOST_THREADS = 2, 16


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


def preparing_threads() -> int:
    """Return the number of threads, 2 to 16, that decode and prepare images ahead of a model.

    It is this process's share of the cores that it may use, if other workers use them too.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    workers = int(os.environ.get(LOCAL_WORKERS, "1"))
    return max(FEWEST_THREADS, min(MOST_THREADS, cores // max(1, workers)))


def alone_on_its_core() -> Callable[[], None]:
    """Return a function that makes torch run the operations of its thread in this thread alone.

    Call it at the start of each of several threads that work side by side: by default, torch would
    divide each of their operations among a team of threads per thread. Other threads keep the
    number of the caller. Does nothing if torch is not loaded or was built without OpenMP.
    """
    torch = sys.modules.get("torch")
    if torch is None or "OpenMP" not in torch.__config__.parallel_info():
        return lambda: None
    usual = torch.get_num_threads()

    def start() -> None:
        torch.get_num_threads()  # torch sets the usual number at a thread's first call
        torch.set_num_threads(1)
        # This sets the number of the calling thread, and of all threads that start later. The
        # latter is undone from a thread that ends.
        other = threading.Thread(target=torch.set_num_threads, args=(usual,))
        other.start()
        other.join()

    return start


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
