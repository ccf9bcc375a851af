"""Run a model on batches so that one bad sample does not fail its whole batch.

A batch that fails is split in halves and retried until the failing samples are isolated. A batch
that runs out of memory lowers the size of later batches, which grows again when they succeed. A
batch that exceeds the time limit is interrupted.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
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
OUT_OF_MEMORY = "out_of_memory"  # a SampleError's reason
# Parts of messages of torch's allocators and of the CUDA and HIP libraries, in lower case. cuBLAS,
# cuDNN, cuSOLVER, cuSPARSE and cuFFT report a status such as CUBLAS_STATUS_ALLOC_FAILED.
NO_MEMORY = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory",
    "alloc_failed", "allocation_failed", "bad_alloc",
)  # fmt: skip
FIRST_RETRY = 64  # full batches at the limit before a size that ran out of memory is tried again
BACK_OFF = 16  # factor by which that number grows with each failure of the size


class SampleError(Exception):
    """One sample could not be processed. `reason` is a short code for counting."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class BrokenDeviceError(Exception):
    """Every further CUDA call of this process fails; a new process can use the GPU again."""


@dataclass
class BatchLimit:
    """The largest batch size that fits in memory, as far as known.

    `failed` are larger sizes that ran out of memory, the smallest last. After FIRST_RETRY full
    batches at the limit, the next larger size is tried again; after each failure of that size,
    BACK_OFF times as many are needed. A fixed amount of memory thus costs one failed batch after 64
    good ones, one after 1,024 more, one after 16,384 more.
    """

    failed: list[int] = field(default_factory=list)
    current: int | None = None
    _good: int = 0
    _failures: Counter[int] = field(default_factory=Counter)

    def shrink(self, size: int) -> None:
        """Halve the limit after a batch of `size` (>= 2) that ran out of memory."""
        self.failed = [*(one for one in self.failed if one > size), size]
        self.current, self._good = size // 2, 0
        self._failures[size] += 1

    def succeeded(self, size: int) -> None:
        """Record a batch of `size` that fitted; raise the limit after enough of them."""
        if self.current is None or size < self.current:
            return
        self._good += 1
        larger = None
        if self.failed:
            odd_half = 2 * self.current + 1
            larger = self.failed[-1] if self.failed[-1] <= odd_half else 2 * self.current
        failures = 0 if larger is None else self._failures[larger]
        if self._good < FIRST_RETRY * BACK_OFF ** max(0, failures - 1):
            return
        log.debug("no lack of memory in %d batches; limit raised to %s", self._good, larger)
        del self._failures[self.current]  # it fits again
        self.failed = [one for one in self.failed if one != larger]
        self.current, self._good = larger, 0


class Batches:
    """Batch runner for one model, with a time limit of `seconds` per batch.

    `limit` is the batch size that is known to fit in memory.
    """

    def __init__(self, seconds: float = BATCH_TIMEOUT):
        self.seconds = seconds
        self.limit = BatchLimit()
        self._warned: set[int] = set()
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
        done: list[Result | SampleError] = []
        while len(done) < len(items):
            size = self.limit.current or len(items)
            done += self._batch(model, items[len(done) : len(done) + size], on_hang)
        return done

    def _batch(
        self,
        model: Callable[[Sequence[Item]], Sequence[Result]],
        items: Sequence[Item],
        on_hang: Callable[[Sequence[Item]], None],
    ) -> list[Result | SampleError]:
        before = deepcopy(self.limit)
        found: list[Result] | SampleError = self.tried(
            lambda: list(model(items)), partial(on_hang, items)
        )
        if not isinstance(found, SampleError):
            self.limit.succeeded(len(items))
            return [*found]
        if len(items) == 1:
            return [found]
        if found.reason != OUT_OF_MEMORY:
            half = len(items) // 2
            first = self.run(model, items[:half], on_hang)
            return first + self.run(model, items[half:], on_hang)
        self._shrink(len(items))
        done = self.run(model, items, on_hang)
        if any(isinstance(one, SampleError) and one.reason == found.reason for one in done):
            self.limit = before  # one item explains the failure, and the size does not
        return done

    def _shrink(self, size: int) -> None:
        self.limit.shrink(size)
        level = logging.DEBUG if size in self._warned else logging.WARNING
        self._warned.add(size)
        log.log(
            level, "out of memory at batch size %d; continuing with %d", size, self.limit.current
        )
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tried(
        self, work: Callable[[], Result], on_hang: Callable[[], None] | None = None
    ) -> Result | SampleError:
        """Return what `work` returns within the time limit, or why it failed.

        If it hangs and cannot be interrupted, `on_hang` is called before the process exits.

        Raises BrokenDeviceError if the GPU is at fault. The traceback of the failure, which holds
        the tensors, is freed here.
        """
        try:
            with self._deadline.block(on_hang):
                return work()
        except SampleError as error:
            return error
        except TimedOutError:
            detail = f"no answer within {self.seconds:g} s (--batch-timeout)"
            return SampleError(MODEL_HUNG, detail)
        except (RuntimeError, ValueError, ArithmeticError, LookupError, MemoryError) as error:
            reason = OUT_OF_MEMORY if is_out_of_memory(error) else "model_error"
            if "CUDA error" in str(error):
                _check_device(error)
            return SampleError(reason, f"{type(error).__name__}: {error}"[:LONGEST_DETAIL])


def _check_device(error: Exception) -> None:
    """Raise BrokenDeviceError if CUDA rejects all further work after `error`."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as refused:
        if not is_out_of_memory(refused):
            raise BrokenDeviceError(f"CUDA is unusable in this process ({error})") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch, its libraries or Python is about missing memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    ):
        return True
    text = str(error).lower()
    return any(words in text for words in NO_MEMORY)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    stream = iter(items)
    while batch := list(islice(stream, size)):
        yield batch
