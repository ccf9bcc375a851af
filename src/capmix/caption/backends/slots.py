"""Write captions in a fixed number of slots: a finished caption makes room for the next image.

`generate` runs a batch until its longest caption ends. Here each slot holds one caption under way;
all slots take one step together, and images enter the slots that are free. A step has the same
shapes whatever the slots hold, so it can be recorded as one CUDA graph, and a caption does not
depend on its neighbours. Prompts run in groups; the K captions of an image share one prompt.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from capmix.caption.backends.slot_models import Prompted, SlotModel
from capmix.caption.backends.slot_sizes import SlotSizes, SlotsPlan
from capmix.caption.backends.slot_state import Owner, SlotState, recorded
from capmix.caption.captioner import Caption
from capmix.caption.sampling import NAN_LOGITS, caption_key
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage
from capmix.engine.batches import OUT_OF_MEMORY, SampleError, is_out_of_memory

log = logging.getLogger(__name__)

STEPS_PER_CHECK = 4  # on a GPU, the host looks for finished captions after so many steps
LOOKED_AT = 4  # groups among which images of one shape are sought
ROUNDED_TO = 64  # positions; prompts of other lengths then rarely need new memory
MOST_FAILURES = 3  # failed steps after which all images are left to `generate`


@dataclass(frozen=True)
class _Group:
    """Images whose prompts have been run: rows `first` and following of `prompted`.

    `ready` is a CUDA event on a GPU.
    """

    images: list[StreamedImage]
    prompted: Prompted
    ready: Any = None
    first: int = 0


class Slots:
    """The slots of one model. Out of memory, there are fewer, and nothing is lost.

    `collate` joins the inputs of images of one shape into a batch on the device; `decode` makes a
    caption of token ids; `alone` finishes a batch in another way and gets the images that fail
    here. On a GPU, groups of prompts are padded to the full size if all images have one shape.
    """

    def __init__(
        self,
        model: SlotModel,
        settings: CaptionSettings,
        ends: Sequence[int],
        plan: SlotsPlan,
        device: str,
        have_one_shape: bool,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        decode: Callable[[list[int]], Caption],
        alone: Callable[[Sequence[StreamedImage], Running], None],
    ):
        import torch

        self._model, self._wanted, self._most = model, settings, settings.captions_per_image
        self.sizes = SlotSizes(plan, self._most)
        self._collate, self._decode, self._alone = collate, decode, alone
        self._ends = torch.tensor(list(ends), dtype=torch.int64, device=device)
        self._device, self._have_one_shape = device, have_one_shape
        self._is_gpu = device.startswith("cuda")
        self._side: Any = None
        if self._is_gpu:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._state: SlotState | None = None
        self._graph: Any = None
        self._ahead: _Group | None = None  # prompts that wait for free slots
        self._finished: list[StreamedImage] = []
        self._failures = 0

    def stream(
        self, images: Iterator[StreamedImage], running: Running
    ) -> Iterator[list[StreamedImage]]:
        """Yield the images in the order in which they finish; see caption/stream.py."""
        waiting: deque[StreamedImage] = deque()

        def attempt(
            work: Callable[..., Any],
            *given: Any,
            involved: Sequence[StreamedImage] = (),
            is_prompt: bool = False,
        ) -> Generator[list[StreamedImage], None, Any]:
            todo = partial(work, *given)
            return self._attempt(todo, list(involved), is_prompt, waiting, running)

        if self._state is not None and len(self._state.owners) != self.sizes.slots:
            self._drop()
        try:
            is_over = False
            while not is_over:
                if self._wants_images:
                    some = _next(images, waiting, self.sizes.group)
                    is_over = not some and self._is_idle
                    if some and (some[0].is_alone or self._failures >= MOST_FAILURES):
                        yield self._left(some, running)
                    elif some:
                        self._ahead = yield from attempt(
                            self._prompted, some, involved=some, is_prompt=True
                        )
                if self._ahead is not None and self._has_room(self._ahead):
                    group, self._ahead = self._ahead, None
                    yield from attempt(self._admit, group, running.source, involved=group.images)
                    del group  # its prompts are large
                elif not self._is_idle:
                    yield from attempt(self._advance)
                if self._finished:
                    finished, self._finished = self._finished, []
                    yield finished
            self.sizes.shard_succeeded()
        finally:
            if self._under_way or self._finished:  # left early
                self._drop()

    def _attempt(
        self,
        work: Callable[[], Any],
        involved: list[StreamedImage],
        is_prompt: bool,
        waiting: deque[StreamedImage],
        running: Running,
    ) -> Generator[list[StreamedImage], None, Any]:
        """Return what `work` returns. If it fails, yield the images that another way captions.

        Out of memory, the images start again in smaller groups or fewer slots.
        """
        import torch

        def on_hang() -> None:
            # Work on a GPU is asynchronous: what hangs may have been launched earlier.
            known = [*involved, *self._under_way] if self._is_gpu else involved or self._under_way
            running.on_hang(list(dict.fromkeys(known)))

        with running.busy.working(0), torch.inference_mode(), self._on_device():
            result = running.batches.tried(work, on_hang)
        if not isinstance(result, SampleError):
            return result
        if result.reason == OUT_OF_MEMORY:
            if is_prompt and self.sizes.shrink_group():
                waiting.extendleft(reversed(involved))
                return None
            if not is_prompt and self.sizes.shrink_slots():
                waiting.extendleft(reversed([*self._drop(), *involved]))
                return None
        elif not is_prompt:
            self._failures += 1
            if self._failures == MOST_FAILURES:
                log.warning("steps in slots fail (%s); captions come from generate", result)
        if failed := involved if is_prompt else [*involved, *self._drop()]:
            yield self._left(failed, running)
        return None

    def _left(self, images: list[StreamedImage], running: Running) -> list[StreamedImage]:
        """Return images that `alone` has finished."""
        if self._is_gpu:
            import torch

            torch.cuda.synchronize(self._device)  # a step that hangs is not theirs
        self._alone(images, running)
        return images

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        return torch.cuda.device(self._device) if self._is_gpu else contextlib.nullcontext()

    def _numbers(self, image: StreamedImage) -> range:
        """The numbers of the captions to write."""
        return range(image.first, self._most)

    @property
    def _under_way(self) -> list[StreamedImage]:
        """The images in slots, and those that wait for slots."""
        inside = [] if self._state is None else self._state.images
        return inside + (list(self._ahead.images) if self._ahead else [])

    @property
    def _is_idle(self) -> bool:
        return self._state is None or not self._state.images

    @property
    def _wants_images(self) -> bool:
        """Whether to run prompts now. On a GPU they run beside the steps, before slots are free."""
        if self._ahead is not None:
            return False
        if self._is_gpu or self._is_idle or self._state is None:
            return True
        return len(self._state.free) >= self.sizes.group * self._most

    def _has_room(self, group: _Group) -> bool:
        """Whether the captions of a group can start. On a GPU, steps go on until it is ready."""
        state = self._state
        if state is None:
            return True
        if group.ready is not None and state.images and not group.ready.query():
            return False
        if group.prompted.length + self._wanted.max_tokens > state.cache.length:
            return not state.images
        return len(state.free) >= min(len(state.owners), len(group.images) * self._most)

    def _prompted(self, images: list[StreamedImage]) -> _Group:
        """Run the prompts of images of one shape."""
        inputs = [image.prepared for image in images]
        if self._side is None:
            group = _Group(images, self._model.prompt(self._collate(inputs)))
            self.sizes.group_succeeded(len(images))
            return group
        import torch

        size = self.sizes.group if self._have_one_shape else 1 << (len(inputs) - 1).bit_length()
        inputs += inputs[-1:] * (size - len(inputs))
        here = torch.cuda.current_stream()
        with torch.cuda.stream(self._side):
            prompted = self._model.prompt(self._collate(inputs))
            ready = self._side.record_event()
        for tensor in prompted.tensors:
            tensor.record_stream(here)
        self.sizes.group_succeeded(size)
        return _Group(images, prompted, ready)

    def _admit(self, group: _Group, source: str) -> None:
        """Start the captions of a group in free slots."""
        import torch

        if group.ready is not None:
            torch.cuda.current_stream().wait_event(group.ready)
        state = self._state_for(group.prompted)
        fitting = group.images[: len(state.free) // self._most]
        captions = [
            (row, image, number)
            for row, image in enumerate(fitting, group.first)
            for number in self._numbers(image)
        ]
        if captions:
            slots = state.free[: len(captions)]
            keys = [caption_key(self._wanted.seed, one.name, source, k) for _, one, k in captions]
            found = torch.tensor([[row for row, _, _ in captions], keys], device=state.rows.device)
            state.start(slots, group.prompted, found[0], found[1])
            for slot, (_, image, number) in zip(slots, captions, strict=True):
                state.owners[slot] = Owner(image, number, state.copies)
        self._finished += [image for image in fitting if not self._numbers(image)]
        if rest := group.images[len(fitting) :]:  # memory held fewer slots than planned
            self._ahead = replace(group, images=rest, first=group.first + len(fitting))

    def _state_for(self, like: Prompted) -> SlotState:
        """Return the state; make one if there is none or if the prompts are too long for it."""
        needed = like.length + self._wanted.max_tokens
        if self._state is None or needed > self._state.cache.length:
            is_first = self._state is None
            self._state = self._graph = None
            length = needed if is_first else -(-needed // ROUNDED_TO) * ROUNDED_TO
            self.sizes.fit(like.bytes_per_row(length), self._device)
            slots = self.sizes.slots
            state = SlotState(self._model, self._wanted, self._ends, like, slots, length)
            self._graph = self._recorded(state) if self._is_gpu else None
            self._state = state
        return self._state

    def _recorded(self, state: SlotState) -> Any:
        """Return a CUDA graph of one step; None if it cannot be recorded."""
        import torch

        try:
            return recorded(
                torch.compile(state.step) if self._wanted.compile_decoder else state.step
            )
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.warning("no CUDA graph (%s); steps are launched one by one", error)
            return None

    def _advance(self) -> None:
        """Take one step or, on a GPU, several."""
        assert self._state is not None
        if not self._is_gpu:
            self._state.narrow()
            self._state.step()
        else:
            for _ in range(STEPS_PER_CHECK):
                self._state.step() if self._graph is None else self._graph.replay()
        self._collect(self._state)

    def _collect(self, state: SlotState) -> None:
        """Take captions that are done out of their slots.

        On a GPU, from the last but one copy of the state, so that the host does not wait for steps
        that have just been launched.
        """
        new = state.copied()
        copy, state.last_copy = (state.last_copy, new) if self._is_gpu else (new, None)
        if copy is None:
            return
        if copy.ready is not None:
            copy.ready.synchronize()
        is_done, is_nan, steps, tokens = (tensor.tolist() for tensor in copy.tensors)
        for slot in range(len(state.owners)):
            owner = state.owners[slot]
            if owner is None or not is_done[slot] or copy.number <= owner.since:
                continue
            image = owner.image
            image.written[owner.number] = self._decode(tokens[slot][: steps[slot]])
            if is_nan[slot]:
                image.error = SampleError("model_error", f"ValueError: {NAN_LOGITS}")
            if image.error or len(image.written) == len(self._numbers(image)):
                self._finished.append(image)
                state.forget(image)
            else:
                state.owners[slot] = None

    def _drop(self) -> list[StreamedImage]:
        """Drop the slots; return the images under way, without any captions."""
        lost = self._under_way
        self._state = self._graph = self._ahead = None
        for image in lost:
            image.written.clear()
        if self._is_gpu:
            import torch

            with contextlib.suppress(RuntimeError):  # of a device that is at fault
                torch.cuda.empty_cache()
        return lost


def _next(
    images: Iterator[StreamedImage], waiting: deque[StreamedImage], most: int
) -> list[StreamedImage]:
    """Return up to `most` images of one shape; others wait in `waiting`. Empty at the end.

    An image that must be alone is returned alone.
    """
    waiting.extend(islice(images, max(0, most - len(waiting))))
    if not waiting:
        return []
    shape = _shape(waiting[0])
    if any(_shape(image) != shape for image in waiting):
        waiting.extend(islice(images, max(0, LOOKED_AT * most - len(waiting))))
    some = [image for image in waiting if _shape(image) == shape][:most]
    chosen = set(map(id, some))
    kept = [image for image in waiting if id(image) not in chosen]
    waiting.clear()
    waiting.extend(kept)
    return some


def _shape(image: StreamedImage) -> Any:
    """Return what images that run together have in common."""
    shapes = [(name, tuple(tensor.shape)) for name, tensor in image.prepared.items()]
    return shapes if not image.is_alone else id(image)
