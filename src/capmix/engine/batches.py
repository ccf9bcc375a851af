"""Run a model on batches so that one bad sample does not fail its whole batch.

A batch that fails is split in halves and retried until the failing samples are isolated. A batch
that runs out of memory lowers the size of all later batches. A batch that exceeds the time limit
is interrupted.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from capmix.engine.deadline import Deadline, TimedOutError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_TIMEOUT = 600.0  # seconds; compiling a model within its first batch takes a minute or two
LONGEST_DETAIL = 500
MODEL_HUNG = "model_hung"
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class SampleError(Exception):
    """One sample could not be processed. `reason` is a short code for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class BrokenDeviceError(Exception):
    """Every further CUDA call of this process fails; a new process can use the GPU again."""


class Batches:
    """Batch runner for one model, with a time limit of `seconds` per batch.

    `largest` is the largest batch size known to fit in memory; None until a batch runs out of it.
    """

    def __init__(self, seconds: float = BATCH_TIMEOUT):
        self.seconds = seconds
        self.largest: int | None = None
        self._deadline = Deadline(seconds)

    def run(
        self,
        model: Callable[[Sequence[Item]], Sequence[Result]],
        items: Sequence[Item],
        on_hang: Callable[[Sequence[Item]], None] = lambda _: None,
    ) -> list[Result | SampleError]:
        """Return the result of `model` for each item, or the SampleError that explains its failure.

        `model` returns one result per item, in order. The error is the SampleError that the model
        raised, or one with reason `out_of_memory`, `model_hung` (took longer than `seconds`) or
        `model_error`. If the model hangs and cannot be interrupted, `on_hang` gets the items before
        the process exits (see Deadline).

        Raises BrokenDeviceError if the GPU is at fault and not the samples.
        """
        if not items:
            return []
        if self.largest is not None and len(items) > self.largest:
            first = self.run(model, items[: self.largest], on_hang)
            return first + self.run(model, items[self.largest :], on_hang)
        failure = None
        try:
            with self._deadline.block(partial(on_hang, items)):
                return list(model(items))
        except SampleError as error:
            failure = error
        except TimedOutError:
            detail = f"no answer within {self.seconds:g} s (--batch-timeout)"
            failure = SampleError(MODEL_HUNG, detail)
        except (RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            reason = "out_of_memory" if _is_out_of_memory(error) else "model_error"
            if "CUDA error" in str(error):
                _check_device(error)
            failure = SampleError(reason, f"{type(error).__name__}: {error}"[:LONGEST_DETAIL])
        if len(items) == 1:
            return [failure]
        half = len(items) // 2
        if failure.reason == "out_of_memory":  # after `except`: its traceback holds the tensors
            self._shrink(len(items), half)
        first = self.run(model, items[:half], on_hang)
        return first + self.run(model, items[half:], on_hang)

    def _shrink(self, size: int, half: int) -> None:
        if self.largest is None or half < self.largest:
            self.largest = half
            log.warning("out of memory at batch size %d; continuing with %d", size, half)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _check_device(error: Exception) -> None:
    """Raise BrokenDeviceError if CUDA rejects all further work after `error`."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise BrokenDeviceError(f"CUDA is unusable in this process ({error})") from error


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch
