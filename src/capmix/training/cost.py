"""What a training run takes, before it begins: hours on a CPU, and memory.

From the shape of the model's transformers and, for hours, a product of matrices that is timed on
this machine. Of one layer and one token of width w, a forward pass is 24 w^2 operations, and
attention 4 T w with T tokens; a backward pass is twice that, and with checkpointing the forward
pass comes again. Memory is 16 bytes a parameter (weights, gradients, two moments of Adam), the
input of each layer, and what one layer holds while it is computed again: 8.1 MB for a sample of
ViT-B-32 in float32; measured on a CPU, between batches of 16 and 48, 7.5 MB.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capmix.errors import UserError
from capmix.training.model import config_file, read_config
from capmix.training.run import RunFolder
from capmix.training.scales import TINY, TrainSettings
from capmix.training.train import check_machine, on_cpu, place

LONG = 2.0  # hours that nobody is asked about
PARAMETER_BYTES = 16
OF_ONE_LAYER = 24  # values of its width that a layer holds for a token, gradients included
PREFETCHED = 2  # batches of each data worker: torch's default
LOADED = 10**9  # bytes of the libraries
VOCABULARY, CONTEXT, PATCH = 49_408, 77, 16
SIDE, TIMED = 1024, 0.3  # of the matrices that are timed, and for how many seconds
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Tower:
    """A transformer: layers, width, tokens of a sample."""

    layers: int
    width: int
    tokens: int

    @property
    def parameters(self) -> int:
        return 12 * self.width**2 * self.layers

    @property
    def operations(self) -> int:
        """Of a forward pass of one sample."""
        attention = 4 * self.tokens**2 * self.width
        return self.layers * (24 * self.width**2 * self.tokens + attention)

    @property
    def values(self) -> int:
        """Numbers that a layer takes in, of one sample."""
        return self.tokens * self.width


@dataclass(frozen=True)
class RunCost:
    """What one device's process takes: operations of the run, bytes of the model and its batch,
    and bytes of the batches that its data workers hold."""

    operations: float
    training: float
    loading: float


def run_cost(settings: TrainSettings, world_size: int = 1, is_cpu: bool = True) -> RunCost | None:
    """None for a model that is not of two plain transformers, such as a ResNet."""
    scale = settings.in_full
    path = config_file(settings)
    config = read_config(path) if path is not None else _known_config(scale.model)
    towers = _towers(config) if config else None
    if config is None or towers is None:
        return None
    passes = 4 if scale.grad_checkpointing else 3
    operations = scale.samples * passes * sum(tower.operations for tower in towers) / world_size
    parameters = sum(tower.parameters for tower in towers) + VOCABULARY * towers[1].width
    size = 4 if is_cpu or settings.precision == "fp32" or settings.scale == TINY else 2
    batch = settings.device_batch(world_size)
    kept = 1 if scale.grad_checkpointing else OF_ONE_LAYER
    values = sum(kept * tower.layers * tower.values for tower in towers)
    values += OF_ONE_LAYER * max(tower.values for tower in towers)  # one layer at a time
    pixels = batch * 3 * 4 * _side(config) ** 2
    training = parameters * PARAMETER_BYTES + batch * values * size + pixels
    loading = settings.data_workers * PREFETCHED * pixels
    return RunCost(operations, training, loading)


def check_cost(settings: TrainSettings, out: str) -> None:
    """Raise UserError for a run that takes days on a CPU, or more memory than there is.

    A run that is finished takes nothing.
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
                f"train: --scale {settings.scale} on a CPU takes days or more; pass --yes to start "
                "it anyway, or train on a GPU"
            )
        return
    problem = _on_cpu(settings, cost) if is_cpu else _on_gpu(cost)
    if problem is not None:
        raise UserError(f"train: {problem}; pass --yes to start it anyway")


def _on_cpu(settings: TrainSettings, cost: RunCost) -> str | None:
    rate = operations_per_second()
    hours = cost.operations / rate / 3600
    needed, there = cost.training + cost.loading + LOADED, machine_memory()
    if hours <= LONG and needed <= there:
        return None
    scale = settings.in_full
    return (
        f"on this CPU {scale.samples:,} samples of {scale.model} take about {_hours(hours)} and "
        f"{_gb(needed)} of memory (this machine has {_gb(there)}), estimated at {rate / 1e9:,.0f} "
        "billion operations/s, timed now; train on a GPU, or lower --samples, --batch-size, "
        "--workers"
    )


def _on_gpu(cost: RunCost) -> str | None:
    import torch

    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if cost.training > there:
        return (
            f"a batch takes about {_gb(cost.training)} of GPU memory, estimated by the model's "
            f"shape, and there are {_gb(there)}; raise --accumulate or lower --batch-size"
        )
    needed, there = cost.loading + LOADED, machine_memory()
    if needed > there:
        return (
            f"data workers hold about {_gb(needed)} of memory and this machine has {_gb(there)}; "
            "lower --workers or raise --accumulate"
        )
    return None


def operations_per_second() -> float:
    """float32 operations that this machine's CPU makes in a product of matrices."""
    import torch

    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    torch.mm(left, right)
    count, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < TIMED or not count:
        torch.mm(left, right)
        count += 1
    return 2 * SIDE**3 * count / seconds


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process runs in."""
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


def _towers(config: dict[str, Any]) -> tuple[Tower, Tower] | None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    numbers = (vision.get("layers"), vision.get("width"), text.get("layers"), text.get("width"))
    is_other = "timm_model_name" in vision or "hf_model_name" in text
    if is_other or not all(isinstance(number, int) for number in numbers):
        return None
    patches = (_side(config) // (vision.get("patch_size") or PATCH)) ** 2
    images = Tower(vision["layers"], vision["width"], patches + 1)
    return images, Tower(text["layers"], text["width"], text.get("context_length", CONTEXT))


def _side(config: dict[str, Any]) -> int:
    side = config["vision_cfg"].get("image_size", 224)
    return max(side) if isinstance(side, list) else int(side)


def _hours(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 2 else f"{hours:.1f} hours"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"
