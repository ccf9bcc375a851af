"""Estimate the cost of a training run before it starts: hours on a CPU, and memory.

The estimate uses the shapes of the model's transformers and, for hours, a matrix product that is
timed on this computer. Per layer and token, a forward pass at width w takes 24 w^2 operations, plus
4 T w for attention over T tokens. A backward pass takes twice as many, and gradient checkpointing
adds a second forward pass. Memory is 16 bytes per parameter (weights, gradients, two moments of
Adam), the input of each layer, and the activations of one layer while it is recomputed. For
ViT-B-32 in float32 this is 8.1 MB per sample; 7.5 MB was measured on a CPU, from the difference
between batches of 16 and 48.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.training.model import config_file, read_config
from capmix.training.run import RunFolder
from capmix.training.scales import TINY, TrainSettings
from capmix.training.threads import PASSES, planned_threads
from capmix.training.train import check_machine, on_cpu, place

MAX_CPU_HOURS = 2.0  # longer runs need --yes
PARAMETER_BYTES = 16
ACTIVATIONS = 24  # per layer and token, as a multiple of the width, including gradients
PREFETCHED = 2  # batches per data worker: torch's default
LOADED = 10**9  # bytes used by the libraries
SCORES = 3  # a CoCa's scores of tokens, their logarithms and gradients
VOCABULARY, CONTEXT, PATCH = 49_408, 77, 16
SIDE, TIMED = 1024, 0.3  # side of the timed matrices, and seconds of timing
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Tower:
    """A transformer: its layers, width and tokens per sample."""

    layers: int
    width: int
    tokens: int

    @property
    def parameters(self) -> int:
        return 12 * self.width**2 * self.layers

    @property
    def operations(self) -> int:
        """Operations of a forward pass of one sample."""
        attention = 4 * self.tokens**2 * self.width
        return self.layers * (24 * self.width**2 * self.tokens + attention)

    @property
    def values(self) -> int:
        """Number of input values of a layer per sample."""
        return self.tokens * self.width


@dataclass(frozen=True)
class RunCost:
    """The cost of one device's process.

    `operations` are those of the whole run, `forward` those of a forward pass of one sample.
    `training` are the bytes of the model and its batch,
    `loading` the bytes of the batches in its data workers.
    """

    operations: float
    forward: float
    training: float
    loading: float


def run_cost(settings: TrainSettings, world_size: int = 1, is_cpu: bool = True) -> RunCost | None:
    """Estimate the cost; None unless all towers are plain transformers (not for a ResNet)."""
    scale = settings.in_full
    path = config_file(settings)
    config = read_config(path) if path is not None else _known_config(scale.model)
    towers = _towers(config) if config else None
    if config is None or towers is None:
        return None
    passes = 4 if scale.grad_checkpointing else 3
    scores = _scores(config)
    sample = sum(tower.operations for tower in towers) + 2 * scores * towers[1].width
    operations = scale.samples * passes * sample / world_size
    vocabulary = config["text_cfg"].get("vocab_size", VOCABULARY)
    embeddings = vocabulary * towers[1].width * (2 if scores else 1)
    parameters = sum(tower.parameters for tower in towers) + embeddings
    size = 4 if is_cpu or settings.precision == "fp32" or settings.scale == TINY else 2
    batch = settings.device_batch(world_size)
    kept = 1 if scale.grad_checkpointing else ACTIVATIONS
    values = sum(kept * tower.layers * tower.values for tower in towers)
    values += ACTIVATIONS * max(tower.values for tower in towers)  # one layer at a time
    values += scores * (SCORES + settings.accumulate - 1)
    pixels = batch * 3 * 4 * _side(config) ** 2
    training = parameters * PARAMETER_BYTES + batch * values * size + pixels
    loading = settings.data_workers * PREFETCHED * pixels
    return RunCost(operations, sample, training, loading)


def check_cost(settings: TrainSettings, out: str) -> None:
    """Raise UserError if a run would take over MAX_CPU_HOURS on a CPU, or more memory than exists.

    Does nothing for finished runs.
    """
    if RunFolder(Path(out).resolve()).finished:
        return
    _, world_size = place()
    check_machine(settings, world_size)
    is_cpu = on_cpu(settings, world_size)
    cost = run_cost(settings, world_size, is_cpu)
    if cost is None:
        if is_cpu and settings.scale != TINY:
            raise UserError(
                f"train: --scale {settings.scale} on a CPU takes days or more; train on a GPU, "
                "or pass --yes to start it anyway"
            )
        return
    problem = _on_cpu(settings, cost) if is_cpu else _on_gpu(cost)
    if problem is not None:
        raise UserError(f"train: {problem}; pass --yes to start it anyway")


def _on_cpu(settings: TrainSettings, cost: RunCost) -> str | None:
    scale = settings.in_full
    step = cost.forward * PASSES * settings.device_batch(1)
    rate = operations_per_second(settings.threads, step)
    hours = cost.operations / rate / 3600
    needed, there = cost.training + cost.loading + LOADED, machine_memory()
    if hours <= MAX_CPU_HOURS and needed <= there:
        return None
    return (
        f"training {scale.model} on {scale.samples:,} samples on this CPU takes about "
        f"{_hours(hours)} and {_gb(needed)} of memory (available: {_gb(there)}), estimated at the "
        f"measured {rate / 1e9:,.0f} billion operations/s; train on a GPU, or reduce --samples, "
        "--batch-size or --workers"
    )


def _on_gpu(cost: RunCost) -> str | None:
    import torch

    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if cost.training > there:
        return (
            f"a batch takes about {_gb(cost.training)} of GPU memory, estimated from the model's "
            f"shape, but the GPU has {_gb(there)}; increase --accumulate or reduce --batch-size"
        )
    needed, there = cost.loading + LOADED, machine_memory()
    if needed > there:
        return (
            f"data workers take about {_gb(needed)} of memory, but only {_gb(there)} is available; "
            "reduce --workers or increase --accumulate"
        )
    return None


def operations_per_second(threads: int | None = None, step: float = math.inf) -> float:
    """Measure the CPU's float32 operations per second in a matrix product.

    It uses the threads that a run with steps of so many operations will have; `threads` is
    --threads.
    """
    import torch

    there = torch.get_num_threads()
    torch.set_num_threads(planned_threads(lambda: step, threads, there))
    try:
        return _timed_rate()
    finally:
        torch.set_num_threads(there)


def _timed_rate() -> float:
    import torch

    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    torch.mm(left, right)
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < TIMED or not count:
        torch.mm(left, right)
        count += 1
    return 2 * SIDE**3 * count / seconds


def machine_memory() -> int:
    """Return the bytes of memory of this computer, or the limit of this container."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CGROUP.read_text("ascii").strip()
    except OSError:
        return there
    return min(there, int(limit)) if limit.isdigit() else there


def _known_config(model: str) -> dict[str, Any] | None:
    import open_clip

    found: dict[str, Any] | None = open_clip.get_model_config(model)
    return found


def _scores(config: dict[str, Any]) -> int:
    """Return how many scores of tokens a CoCa computes per sample; 0 for CLIP."""
    if "multimodal_cfg" not in config:
        return 0
    text = config["text_cfg"]
    return int(text.get("context_length", CONTEXT) * text.get("vocab_size", VOCABULARY))


def _towers(config: dict[str, Any]) -> tuple[Tower, ...] | None:
    """Return image tower, text tower and, for a CoCa, the decoder; None for other models."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    numbers = (vision.get("layers"), vision.get("width"), text.get("layers"), text.get("width"))
    is_other = "timm_model_name" in vision or "hf_model_name" in text
    if is_other or not all(isinstance(number, int) for number in numbers):
        return None
    patches = (_side(config) // (vision.get("patch_size") or PATCH)) ** 2
    images = Tower(vision["layers"], vision["width"], patches + 1)
    tokens = text.get("context_length", CONTEXT)
    texts = Tower(text["layers"], text["width"], tokens)
    decoder = config.get("multimodal_cfg")
    if decoder is None:
        return images, texts
    # A layer is two blocks: attention to the tokens before it, and attention to the image.
    return images, texts, Tower(2 * decoder.get("layers", 12), text["width"], tokens)


def _side(config: dict[str, Any]) -> int:
    side = config["vision_cfg"].get("image_size", 224)
    return max(side) if isinstance(side, list) else int(side)


def _hours(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 2 else f"{hours:.1f} hours"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"
