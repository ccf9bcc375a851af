"""Images per second of the embedded models: the image tower by runtime, then the whole embed path.

    python benchmarks/towers.py

Each runtime runs in a separate process, because the threads of one would slow down another. The
runtimes alternate; medians over rounds and ratios are printed. ONNX Runtime is included if `onnx`
and `onnxruntime` are installed. The target is 100 images/s at 160 pixels on 2 cores, including
decoding and texts.
"""

import importlib.util
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROUNDS = 5
PASSES = 9
TARGET = 100
WHOLE = "both towers with decode"
Run = Callable[[np.ndarray], object]


def main() -> None:
    runtimes = ["torch", "torch channels_last", "OpenVINO"]
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx"):
        runtimes.append("ONNX Runtime")
    rates: dict[str, list[float]] = {name: [] for name in [*runtimes, WHOLE]}
    for _ in range(ROUNDS):
        for name, found in rates.items():
            found.append(_in_own_process(name))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name in runtimes:
        ratio = medians[name] / medians["torch"]
        print(f"{name:<24} {medians[name]:7.1f} images/s  {ratio:5.2f} x torch")
    print(f"{WHOLE:<24} {medians[WHOLE]:7.1f} images/s  {medians[WHOLE] / TARGET:5.2f} x target")


def _in_own_process(name: str) -> float:
    command = [sys.executable, __file__, name]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def _measure(name: str) -> float:
    """Measure images per second in this process."""
    if name == WHOLE:
        return _whole_path()
    from capmix.mini.image_tower import BATCH, SIZE

    run = _runtime(name)
    batch = np.random.default_rng(0).random((BATCH, 3, SIZE, SIZE), np.float32)
    run(batch)
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - started)
    return BATCH / statistics.median(seconds)


def _runtime(name: str) -> Run:
    import torch

    from capmix.mini.image_tower import BATCH, SIZE, _compiled_model, _torch_model

    if name == "OpenVINO":
        return _compiled_model()  # type: ignore[no-any-return]
    trunk = torch.nn.Sequential(_torch_model().as_sequential()[:-1])
    if name == "ONNX Runtime":
        import onnxruntime

        buffer = io.BytesIO()
        example = (torch.zeros(BATCH, 3, SIZE, SIZE),)
        torch.onnx.export(trunk, example, buffer, input_names=["x"], dynamo=False)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(buffer.getvalue(), providers=providers)
        return lambda x: session.run(None, {"x": x})
    last = torch.channels_last if name == "torch channels_last" else torch.contiguous_format

    @torch.inference_mode()
    def run(x: np.ndarray) -> object:
        return trunk(torch.from_numpy(x).to(memory_format=last))

    return run


def _whole_path() -> float:
    """Read, decode and encode the images and texts of the embedded pool, without writing."""
    from capmix.engine.batches import batched
    from capmix.mini.image_tower import BATCH, LiteTower
    from capmix.mini.text_tower import text_tower
    from capmix.models.images import decode_image
    from capmix.pool import Sample, open_pool

    pool, tower, words = open_pool("embedded"), LiteTower(), text_tower()
    tower.load()
    samples = [s for s in pool.read(pool.shards[0]) if isinstance(s, Sample)]
    started = time.perf_counter()
    for batch in batched(samples, BATCH):
        tower.encode([decode_image(sample.image) for sample in batch])
        words.encode([sample.text or "" for sample in batch])
    return len(samples) / (time.perf_counter() - started)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_measure(sys.argv[1]))
    else:
        main()
