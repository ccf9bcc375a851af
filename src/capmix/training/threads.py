"""CPU threads of a training run.

torch starts one thread per core, which small models cannot keep busy: the threads wait for each
other, and where other processes use the cores, they wait long. The default grows with the work of
a step, so that it is the same in every run of the same settings on a computer: sums, and with them
weights, depend on the number of threads.
"""

import logging
import math
import os
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

OPERATIONS = 5e10  # of a step, per thread
PASSES = 3  # forward, and backward with twice the operations
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def share_cores(processes: int) -> None:
    """Limit torch's threads to the share of one of so many processes, unless ENVIRONMENT is set."""
    import torch

    if processes > 1 and not _set_by_user():
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def use_threads(model: Any, batch: int, given: int | None, title: str = "train") -> None:
    """Set the number of torch's threads in this process, which trains `model` on the CPU.

    `given` is --threads. Without it, the environment variables decide, then the work of a step on
    `batch` samples. `title` is the run's, for the log.
    """
    import torch

    there = torch.get_num_threads()
    count = planned_threads(lambda: sample_operations(model) * batch * PASSES, given, there)
    if count != there:
        torch.set_num_threads(count)
        log.info("%s", f"{title}: {count} of {there} CPU threads (--threads)")


def planned_threads(operations: Callable[[], float], given: int | None, there: int) -> int:
    """Return the number of threads for a step of so many operations; `given` is --threads."""
    if given is not None:
        return given
    return there if _set_by_user() else threads_for(operations(), there)


def _set_by_user() -> bool:
    return any(os.environ.get(name) for name in ENVIRONMENT)


def threads_for(operations: float, there: int) -> int:
    """Return the number of threads for a step of so many operations, from 1 to `there`."""
    return there if math.isinf(operations) else max(1, min(there, int(operations / OPERATIONS)))


def sample_operations(model: Any) -> float:
    """Count the operations of a forward pass of one sample; infinite if that is not possible."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    model.eval()  # keeps the statistics of batch normalization, and random numbers
    try:
        side = model.visual.image_size
        shape = (side, side) if isinstance(side, int) else tuple(side)
        image = torch.zeros(1, 3, *shape)
        text = torch.zeros(1, model.context_length, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with counter, torch.enable_grad():  # torch's fused attention, without it, is not counted
            model(image, text)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # other inputs, half precision
        return math.inf
    finally:
        model.train(was_training)
    return float(counter.get_total_flops())
