"""Run a vLLM engine in a thread of its own, so that requests flow across batches.

`LLM.generate` would drain the engine at the end of every batch, and would preprocess images while
the GPU waits. Here, the threads that prepare samples submit requests while the engine runs.
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from capmix.engine.batches import BrokenDeviceError

CLOSED_WITHIN = 5.0  # seconds; a process that exits waits no longer for the thread
STEPS_AHEAD = 4  # vLLM schedules up to two steps ahead of the GPU


class Generation:
    """The requests of one image: one per entry of `sampling`.

    `rendered` is an input as vLLM's renderer returns it, or a list with one for each request; it is
    dropped after a success. `on_end` is called once, when the first attempt has ended.
    """

    def __init__(self, rendered: Any, sampling: Sequence[Any], on_end: Callable[[], None]):
        self.rendered: Any = rendered
        self.sampling = sampling
        self._on_end: Callable[[], None] | None = on_end
        self._found: dict[int, Any] = {}
        self._ended: Future[list[Any]] = Future()

    def result(self) -> list[Any]:
        """Wait, and return vLLM's CompletionOutput for each entry of `sampling`.

        Raises the error that ended the attempt.
        """
        return self._ended.result()

    @property
    def has_failed(self) -> bool:
        """Whether the attempt has ended with an error, so that it can be submitted again."""
        return self._ended.done() and self._ended.exception() is not None

    def restart(self) -> None:
        """Forget the failed attempt."""
        self._found, self._ended = {}, Future()

    def add(self, place: int, output: Any) -> None:
        """Add the output of one request."""
        self._found[place] = output
        if len(self._found) == len(self.sampling):
            self.rendered = None
            self._ended.set_result([self._found[n] for n in range(len(self.sampling))])
            self._release()

    def fail(self, error: BaseException) -> None:
        """End the attempt with an error, unless it has ended."""
        if not self._ended.done():
            self._ended.set_exception(error)
            self._release()

    def _release(self) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


class EngineThread:
    """A vLLM engine and the thread that makes and steps it.

    `make` returns an LLMEngine whose core runs in this process. Raises what `make` raises.

    An error of one step fails all requests that are under way. The engine is then cleared, and can
    be used again; if it cannot be cleared, every later request fails with BrokenDeviceError.
    """

    def __init__(self, make: Callable[[], Any]):
        self._changed = threading.Condition()
        self._new: deque[Generation] = deque()
        self._given_up: deque[Generation] = deque()
        self._at_work: dict[str, tuple[Generation, int]] = {}
        self._names = map(str, itertools.count())
        self._broken: BrokenDeviceError | None = None
        self._is_closing = False
        self._stepped_at = time.monotonic()
        made: Future[Any] = Future()
        self._thread = threading.Thread(target=self._run, args=(make, made), daemon=True)
        self._thread.start()
        self.engine: Any = made.result()

    def submit(self, generation: Generation) -> None:
        """Start the requests of one image. Any thread may call this."""
        with self._changed:
            self._new.append(generation)
            self._changed.notify()

    def give_up(self, generation: Generation) -> None:
        """Abort the requests of one image."""
        with self._changed:
            self._given_up.append(generation)
            self._changed.notify()

    def seconds_since_step(self) -> float:
        """Return the seconds since the last step ended, or since there was nothing to do."""
        return time.monotonic() - self._stepped_at

    def close(self) -> None:
        """End the thread, and free the memory of the model and its cache.

        The interpreter must not exit while the thread runs the model.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # the garbage collector may call this
            self._thread.join(CLOSED_WITHIN)

    def _run(self, make: Callable[[], Any], made: Future[Any]) -> None:
        try:
            # In this thread: torch keeps the current device and the OpenMP threads per thread.
            engine = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        while self._admit(engine):
            try:
                self._step(engine)
            except Exception as error:
                self._recover(engine, error)
        self.engine = None
        with contextlib.suppress(Exception):
            engine.engine_core.shutdown()

    def _admit(self, engine: Any) -> bool:
        """Wait for work and pass it to the engine. Returns false if the thread is to end."""
        with self._changed:
            if not self._at_work:
                self._changed.wait_for(lambda: self._new or self._given_up or self._is_closing)
                self._stepped_at = time.monotonic()
            new, given_up = list(self._new), list(self._given_up)
            self._new.clear()
            self._given_up.clear()
        if self._is_closing:
            return False
        for generation in given_up:
            engine.abort_request(self._forget(generation))
        for generation in new:
            try:
                self._add(engine, generation)
            except Exception as error:  # such as a prompt that is too long
                engine.abort_request(self._forget(generation))
                generation.fail(_as_known(error))
        return True

    def _add(self, engine: Any, generation: Generation) -> None:
        if self._broken is not None:
            raise self._broken
        for place, sampling in enumerate(generation.sampling):
            name = next(self._names)
            rendered = generation.rendered
            own = rendered[place] if isinstance(rendered, list) else rendered
            engine.add_request(name, own, sampling)
            self._at_work[name] = generation, place

    def _step(self, engine: Any) -> None:
        if engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished and output.request_id in self._at_work:
                    generation, place = self._at_work.pop(output.request_id)
                    generation.add(place, output.outputs[0])
        self._stepped_at = time.monotonic()

    def _recover(self, engine: Any, error: Exception) -> None:
        """Fail all requests under way, and clear what the failed step may have left half-made."""
        failed = dict.fromkeys(generation for generation, _ in self._at_work.values())
        try:
            engine.abort_request(list(self._at_work))
            _drain(engine)
            # Blocks of the cache are registered before the step that fills them.
            if not engine.reset_prefix_cache():
                raise RuntimeError("requests are still under way")
            engine.reset_encoder_cache()
        except Exception as second:
            self._broken = BrokenDeviceError(
                f"vLLM failed ({_line(error)}) and cannot go on ({_line(second)})"
            )
        self._at_work.clear()
        for generation in failed:
            generation.fail(self._broken or _as_known(error))

    def _forget(self, generation: Generation) -> list[str]:
        """Remove the requests of one image. Returns their names."""
        names = [name for name, (one, _) in self._at_work.items() if one is generation]
        for name in names:
            del self._at_work[name]
        return names


def _drain(engine: Any) -> None:
    """Take the outcomes of steps that the engine had started ahead, which may have failed too."""
    for _ in range(STEPS_AHEAD):
        with contextlib.suppress(Exception):
            engine.step()


def _as_known(error: Exception) -> Exception:
    """Return an error of a type that Batches handles; vLLM has exceptions of its own."""
    return error if isinstance(error, BrokenDeviceError) else RuntimeError(_line(error))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def tensor_bytes(rendered: Any) -> int:
    """Return the bytes of the image's tensors in an input that vLLM's renderer returned."""
    return sum(_bytes(item) for items in rendered["mm_kwargs"].values() for item in items)


def _bytes(item: Any) -> int:
    return sum(tensor.nbytes for value in item.get_data().values() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "nbytes"):
        yield value
