"""Run a model on batches so that no sample takes its neighbours with it.

A batch that fails is tried again in halves until what fails stands alone; one that does not fit
into memory makes all later ones smaller; one that takes too long is ended.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from capmix.engine.deadline import Deadline, TimedOutError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_TIMEOUT = 600.0  # seconds; compiling a model within its first batch takes a minute or two
LONGEST_DETAIL = 500
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class SampleError(Exception):
    """One sample could not be processed. `reason` is a short word to count by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class BrokenDeviceError(Exception):
    """The GPU answers this process with errors alone from now on; another process may use it."""


class Batches:
    """One model's batches, of at most `seconds` each.

    `largest` is how many samples fit into memory, as far as that has shown.
    """

    def __init__(self, seconds: float = BATCH_TIMEOUT):
        self.seconds = seconds
        self.largest: int | None = None
        self._deadline = Deadline(seconds)

    def run(
        self, model: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
    ) -> list[Result | SampleError]:
        """What `model` makes of each item, or why it could not.

        The model gives one result an item, in order. The reason of a failure is the model's own
        SampleError, or `out_of_memory`, `model_hung` (over `seconds`) or `model_error`. Raises
        BrokenDeviceError where the error is not the samples'.
        """
        if not items:
            return []
        if self.largest is not None and len(items) > self.largest:
            first = self.run(model, items[: self.largest])
            return first + self.run(model, items[self.largest :])
        failure = None
        try:
            with self._deadline.block():
                return list(model(items))
        except SampleError as error:
            failure = error
        except TimedOutError:
            detail = f"no answer within {self.seconds:g} s (--batch-timeout)"
            failure = SampleError("model_hung", detail)
        except (RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            reason = "out_of_memory" if _is_out_of_memory(error) else "model_error"
            if "CUDA error" in str(error):
                _check_device(error)
            failure = SampleError(reason, f"{type(error).__name__}: {error}"[:LONGEST_DETAIL])
        if len(items) == 1:
            return [failure]
        half = len(items) // 2
        if failure.reason == "out_of_memory":  # outside `except`, which would hold its tensors
            self._shrink(len(items), half)
        first = self.run(model, items[:half])
        return first + self.run(model, items[half:])

    def _shrink(self, size: int, half: int) -> None:
        if self.largest is None or half < self.largest:
            self.largest = half
            log.warning("out of memory at batch size %d; continuing with %d", size, half)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _check_device(error: Exception) -> None:
    """After some errors CUDA refuses all further work of a process. Raises BrokenDeviceError."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise BrokenDeviceError(f"the GPU is lost to this process ({error})") from error


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch
