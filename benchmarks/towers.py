"""Images per second of the embedded towers: the image tower by runtime, then the whole embed path.

    python benchmarks/towers.py

Runtimes take turns, round after round, in one process; medians over rounds and ratios are printed.
ONNX Runtime is timed where `onnx` and `onnxruntime` are installed. The target is 100 images/s at
160 pixels on 2 cores, decode and text included.
"""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from capmix.images import decode_image
from capmix.mini.image_tower import BATCH, SIZE, LiteTower, _torch_model
from capmix.mini.text_tower import text_tower
from capmix.pool import Sample, open_pool

ROUNDS = 7
TARGET = 100


def main() -> None:
    runtimes = _runtimes()
    batch = np.random.default_rng(0).random((BATCH, 3, SIZE, SIZE), np.float32)
    rates: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(ROUNDS):
        for name, run in runtimes.items():
            started = time.perf_counter()
            for _ in range(3):
                run(batch)
            rates[name].append(3 * BATCH / (time.perf_counter() - started))
    base = statistics.median(rates["torch"])
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:<24} {rate:7.1f} images/s  {rate / base:5.2f} x torch")
    _whole_path()


def _runtimes() -> dict[str, Callable[[np.ndarray], Any]]:
    trunk = torch.nn.Sequential(_torch_model().as_sequential()[:-1])
    tower = LiteTower()
    found: dict[str, Callable[[np.ndarray], Any]] = {
        "torch": lambda x: _torch(trunk, torch.from_numpy(x)),
        "torch channels_last": lambda x: _torch(
            trunk, torch.from_numpy(x).to(memory_format=torch.channels_last)
        ),
        "OpenVINO (shipped)": lambda x: tower._model(x)[0],
    }
    session = _onnx_session(trunk)
    if session is not None:
        found["ONNX Runtime"] = lambda x: session.run(None, {"x": x})
    return found


@torch.inference_mode()
def _torch(trunk: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return trunk(pixels)


def _onnx_session(trunk: torch.nn.Module) -> Any:
    try:
        import onnxruntime

        buffer = io.BytesIO()
        example = (torch.zeros(BATCH, 3, SIZE, SIZE),)
        torch.onnx.export(trunk, example, buffer, input_names=["x"], dynamo=False)
    except ImportError:
        return None
    return onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])


def _whole_path() -> None:
    """Read, decode and encode the embedded pool's images and texts; no writing."""
    pool, tower, words = open_pool("embedded"), LiteTower(), text_tower()
    samples = [s for shard in pool.shards for s in pool.read(shard) if isinstance(s, Sample)][:960]
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        _encode(samples, tower, words)
        rates.append(len(samples) / (time.perf_counter() - started))
    rate = statistics.median(rates)
    print(f"{'both towers with decode':<24} {rate:7.1f} images/s  {rate / TARGET:5.2f} x target")


def _encode(samples: Sequence[Sample], tower: LiteTower, words: Any) -> None:
    for start in range(0, len(samples), BATCH):
        batch = samples[start : start + BATCH]
        tower.encode([decode_image(sample.image) for sample in batch])
        words.encode([sample.text or "" for sample in batch])


if __name__ == "__main__":
    main()
