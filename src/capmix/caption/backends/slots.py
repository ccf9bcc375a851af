"""Write captions in a fixed number of slots: a finished caption makes room for the next image.

`generate` runs a batch until its longest caption ends. Here each slot holds one caption under way;
all slots take one step together, and images enter the slots that are free. A step has the same
shapes whatever the slots hold, so it can be recorded as one CUDA graph, and a caption does not
depend on its neighbours. Prompts run in groups; the K captions of an image share one prompt.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from capmix.caption.backends.slot_models import Prompted, SlotCache, SlotModel
from capmix.caption.captioner import Caption
from capmix.caption.sampling import NAN_LOGITS, caption_key, draw_tokens
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage
from capmix.engine.batches import OUT_OF_MEMORY, SampleError

log = logging.getLogger(__name__)

STEPS_PER_CHECK = 4  # on a GPU, the host looks for finished captions after so many steps
LOOKED_AT = 4  # groups among which images of one shape are sought
GPU_SHARE, CPU_SHARE = 0.6, 0.2  # of the free memory of a GPU, of all memory: the most for slots
ROUNDED_TO = 64  # positions; prompts of other lengths then rarely need new memory


@dataclass(frozen=True)
class SlotsPlan:
    """How many captions are under way at once, and how many prompts run at once."""

    slots: int
    group: int


@dataclass(frozen=True)
class _Owner:
    """The caption in a slot. Copies of the state up to number `since` are of an earlier owner."""

    image: StreamedImage
    number: int
    since: int


@dataclass(frozen=True)
class _Group:
    """Images whose prompts have been run: rows `first` and following of `prompted`.

    `ready` is a CUDA event on a GPU.
    """

    images: list[StreamedImage]
    prompted: Prompted
    ready: Any = None
    first: int = 0


@dataclass(frozen=True)
class _Copy:
    """A copy of the state in host memory, complete after the CUDA event `ready`."""

    number: int
    tensors: tuple[Any, ...]
    ready: Any = None


class _State:
    """The tensors of all slots, on the device.

    A caption is done when it has drawn an end token or `limit` tokens; then its row is frozen.
    `starts` are the positions of the first tokens, `steps` the numbers of drawn tokens.
    """

    def __init__(self, like: Prompted, slots: int, length: int, limit: int):
        import torch

        device = like.logits.device
        zeros = torch.zeros(slots, dtype=torch.int64, device=device)
        self.cache = SlotCache(like, slots, length)
        self.rows = torch.arange(slots, device=device)
        self.keys, self.steps, self.starts, self.last = (zeros.clone() for _ in range(4))
        self.tokens = torch.zeros(slots, limit + 1, dtype=torch.int64, device=device)
        self.is_done = torch.ones(slots, dtype=torch.bool, device=device)
        self.is_nan = torch.zeros(slots, dtype=torch.bool, device=device)
        self.owners: list[_Owner | None] = [None] * slots
        self.used = slots  # rows in each step
        self.copies = 0
        self.last_copy: _Copy | None = None

    @property
    def free(self) -> list[int]:
        return [slot for slot, owner in enumerate(self.owners) if owner is None]

    def forget(self, image: StreamedImage) -> None:
        """Free the slots of an image. Its captions may go on until the slots are taken."""
        self.owners = [None if one and one.image is image else one for one in self.owners]

    @property
    def images(self) -> list[StreamedImage]:
        """The images under way, each once."""
        return list(dict.fromkeys(owner.image for owner in self.owners if owner is not None))


class Slots:
    """The slots of one model. Out of memory, their number is halved and nothing is lost.

    `collate` joins the inputs of images of one shape into a batch on the device; `decode` makes a
    caption of token ids; `alone` finishes a batch in another way and gets the images that fail
    here.
    """

    def __init__(
        self,
        model: SlotModel,
        settings: CaptionSettings,
        ends: Sequence[int],
        plan: SlotsPlan,
        device: str,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        decode: Callable[[list[int]], Caption],
        alone: Callable[[Sequence[StreamedImage], Running], None],
    ):
        import torch

        self._model, self._wanted, self.plan = model, settings, plan
        self._collate, self._decode, self._alone = collate, decode, alone
        self._ends = torch.tensor(list(ends), dtype=torch.int64, device=device)
        self._is_gpu = device.startswith("cuda")
        self._side: Any = None
        if self._is_gpu:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._state: _State | None = None
        self._ahead: _Group | None = None  # prompts that wait for free slots
        self._graph: Any = None

    def stream(
        self, images: Iterator[StreamedImage], running: Running
    ) -> Iterator[list[StreamedImage]]:
        """Yield the images in the order in which they finish; see caption/stream.py."""
        waiting: deque[StreamedImage] = deque()

        def attempt(work: Callable[..., Any], *given: Any, involved: list[StreamedImage]) -> Any:
            return self._attempt(partial(work, *given), involved, waiting, running)

        try:
            is_over = False
            while not is_over:
                if self._wants_images:
                    some = _next(images, waiting, self.plan.group)
                    is_over = not some and self._is_idle
                    if some and some[0].is_alone:
                        self._alone(some, running)
                        yield some
                    elif some:
                        self._ahead = yield from attempt(self._prompted, some, involved=some)
                if self._ahead is not None and self._has_room(self._ahead):
                    group, self._ahead = self._ahead, None
                    made = yield from attempt(
                        self._admit, group, running.source, involved=group.images
                    )
                elif not self._is_idle:
                    made = yield from attempt(self._advance, involved=[])
                else:
                    made = None
                if made:
                    yield made
        finally:
            self._clear()

    def _attempt(
        self,
        work: Callable[[], Any],
        involved: list[StreamedImage],
        waiting: deque[StreamedImage],
        running: Running,
    ) -> Generator[list[StreamedImage], None, Any]:
        """Return what `work` returns. If it fails, yield the images that another way captions.

        Out of memory, all images under way start again in fewer slots.
        """
        import torch

        def on_hang() -> None:
            running.on_hang(involved or self._under_way)

        with running.busy.working(0), torch.inference_mode():
            result = running.batches.tried(work, on_hang)
        if not isinstance(result, SampleError):
            return result
        if result.reason == OUT_OF_MEMORY and self.plan.slots // 2 >= self._most:
            waiting.extendleft(reversed([*self._clear(), *involved]))
            self._halve()
            return None
        failed = involved or self._clear()
        self._alone(failed, running)
        yield failed
        return None

    @property
    def _most(self) -> int:
        """The largest number of captions of an image."""
        return self._wanted.captions_per_image

    def _numbers(self, image: StreamedImage) -> range:
        """The numbers of the captions to write."""
        return range(image.first, self._most)

    @property
    def _free(self) -> int:
        return self.plan.slots if self._state is None else len(self._state.free)

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
        enough = self._is_gpu or self._is_idle or self._free >= self.plan.group * self._most
        return self._ahead is None and enough

    def _has_room(self, group: _Group) -> bool:
        """Whether the captions of a group can start. On a GPU, steps go on until it is ready."""
        state = self._state
        if state is None:
            return True
        if group.ready is not None and state.images and not group.ready.query():
            return False
        is_long = group.prompted.length + self._wanted.max_tokens > state.cache.length
        need = min(self.plan.slots, len(group.images) * self._most)
        return not state.images if is_long else len(state.free) >= need

    def _prompted(self, images: list[StreamedImage]) -> _Group:
        """Run the prompts of images of one shape. On a GPU, always `plan.group` rows."""
        inputs = [image.prepared for image in images]
        if self._side is None:
            return _Group(images, self._model.prompt(self._collate(inputs)))
        import torch

        inputs += inputs[-1:] * (self.plan.group - len(inputs))
        here = torch.cuda.current_stream()
        with torch.cuda.stream(self._side):
            prompted = self._model.prompt(self._collate(inputs))
            ready = self._side.record_event()
        for tensor in prompted.tensors:
            tensor.record_stream(here)
        return _Group(images, prompted, ready)

    def _admit(self, group: _Group, source: str) -> list[StreamedImage]:
        """Put the captions of a group into free slots, and draw their first tokens.

        Returns the images that have all their captions already.
        """
        import torch

        if group.ready is not None:
            torch.cuda.current_stream().wait_event(group.ready)
        state = self._state_for(group.prompted)
        fitting = group.images[: len(state.free) // self._most]
        if rest := group.images[len(fitting) :]:  # only if memory held fewer slots than planned
            self._ahead = replace(group, images=rest, first=group.first + len(fitting))
        captions = [
            (row, image, number)
            for row, image in enumerate(fitting, group.first)
            for number in self._numbers(image)
        ]
        slots = state.free[: len(captions)]
        names = [image.name for _, image, _ in captions]
        numbers = [number for _, _, number in captions]
        device = state.rows.device
        rows = torch.tensor(slots, device=device)
        sources = torch.tensor([row for row, _, _ in captions], device=device)
        state.cache.put(rows, group.prompted, sources)
        keys = [
            caption_key(self._wanted.seed, name, source, number)
            for name, number in zip(names, numbers, strict=True)
        ]
        state.keys[rows] = torch.tensor(keys, device=device)
        state.starts[rows] = group.prompted.length
        state.steps[rows] = 0
        state.is_done[rows], state.is_nan[rows] = False, False
        self._draw(group.prompted.logits[sources], rows)
        for slot, (_, image, number) in zip(slots, captions, strict=True):
            state.owners[slot] = _Owner(image, number, state.copies)
        return [image for image in fitting if not self._numbers(image)]

    def _state_for(self, like: Prompted) -> _State:
        """Return the state, made anew if there is none or if the prompts are too long for it."""
        needed = like.length + self._wanted.max_tokens
        if self._state is None or needed > self._state.cache.length:
            is_first, self._state, self._graph = self._state is None, None, None
            length = needed if is_first else -(-needed // ROUNDED_TO) * ROUNDED_TO
            self._fit(like.bytes_per_row(length))
            self._state = _State(like, self.plan.slots, length, self._wanted.max_tokens)
            if self._is_gpu:
                self._graph = self._recorded()
        return self._state

    def _fit(self, size: int) -> None:
        """Lower the number of slots, of `size` bytes each, to what the memory holds."""
        import torch

        if self._is_gpu:
            room = int(GPU_SHARE * torch.cuda.mem_get_info()[0])
        elif hasattr(os, "sysconf"):
            room = int(CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        else:  # Windows
            return
        self._set_slots(min(self.plan.slots, room // size))

    def _set_slots(self, slots: int) -> None:
        slots = max(self._most, slots)
        self.plan = SlotsPlan(slots, max(1, min(self.plan.group, slots // self._most)))

    def _recorded(self) -> Any:
        """Record one step of all slots as a CUDA graph. All rows are frozen meanwhile."""
        import torch

        step = torch.compile(self._step) if self._wanted.compile_decoder else self._step
        here = torch.cuda.current_stream()
        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(3):  # compile, and let the libraries choose their kernels
                step()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate pinned memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        return graph

    def _advance(self) -> list[StreamedImage]:
        """Take one step or, on a GPU, several. Return the images that have finished."""
        assert self._state is not None
        if self._graph is None:
            self._narrow(self._state)
            self._step()
        else:
            for _ in range(STEPS_PER_CHECK):
                self._graph.replay()
        return self._collected(self._state)

    def _narrow(self, state: _State) -> None:
        """On a CPU, leave out the slots after the last one in use, and positions none has reached.

        The cost of a step on a CPU is that of its rows.
        """
        used = [slot for slot, owner in enumerate(state.owners) if owner is not None]
        state.used = used[-1] + 1
        ends = (state.starts + state.steps)[used]
        state.cache.narrow(state.used, int(ends.max()))

    def _step(self) -> None:
        """Draw one token for each row that is not done."""
        state = self._state
        assert state is not None
        used = slice(state.used)
        positions = (state.starts + state.steps - 1).clamp_(0, state.cache.length - 1)
        state.cache.positions.copy_(positions)
        self._draw(self._model.step(state.last[used], state.cache), state.rows[used])

    def _draw(self, logits: Any, rows: Any) -> None:
        """Draw a token for each of `rows`, int64 (N,), from logits (N, V), unless it is done."""
        import torch

        state, wanted = self._state, self._wanted
        assert state is not None
        logits, steps, was_done = logits.float(), state.steps[rows], state.is_done[rows]
        early = (steps < min(wanted.min_tokens, wanted.max_tokens)).unsqueeze(1)
        ends = logits.index_select(1, self._ends).masked_fill(early, float("-inf"))
        logits = logits.index_copy(1, self._ends, ends)
        tokens, is_nan = draw_tokens(logits, state.keys[rows], steps, wanted)
        column = torch.where(was_done, wanted.max_tokens, steps)
        state.tokens[rows, column] = tokens
        state.last[rows] = tokens
        state.steps[rows] = steps + ~was_done
        state.is_nan[rows] |= is_nan & ~was_done
        is_end = (tokens.unsqueeze(1) == self._ends).any(1)
        is_done = was_done | is_end | is_nan | (steps + 1 >= wanted.max_tokens)
        state.is_done[rows] = is_done

    def _collected(self, state: _State) -> list[StreamedImage]:
        """Take finished captions out of their slots; return the images that have finished.

        On a GPU, from the last but one copy of the state, so that the host does not wait for steps
        that have just been launched.
        """
        new = self._copied(state)
        copy, state.last_copy = (state.last_copy, new) if self._is_gpu else (new, None)
        if copy is None:
            return []
        if copy.ready is not None:
            copy.ready.synchronize()
        is_done, is_nan, steps, tokens = (tensor.tolist() for tensor in copy.tensors)
        found = []
        for slot in range(len(state.owners)):
            owner = state.owners[slot]
            if owner is None or not is_done[slot] or copy.number <= owner.since:
                continue
            image, state.owners[slot] = owner.image, None
            image.written[owner.number] = self._decode(tokens[slot][: steps[slot]])
            if is_nan[slot]:
                image.error = SampleError("model_error", f"ValueError: {NAN_LOGITS}")
                state.forget(image)
            if image.error or len(image.written) == len(self._numbers(image)):
                found.append(image)
        return found

    def _copied(self, state: _State) -> _Copy:
        import torch

        state.copies += 1
        tensors = (state.is_done, state.is_nan, state.steps, state.tokens)
        if not self._is_gpu:
            return _Copy(state.copies, tensors)
        pinned = tuple(torch.empty_like(one, device="cpu", pin_memory=True) for one in tensors)
        for mine, theirs in zip(pinned, tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        return _Copy(state.copies, pinned, torch.cuda.current_stream().record_event())

    def _clear(self) -> list[StreamedImage]:
        """Empty all slots; return the images under way, without any captions."""
        import torch

        lost, self._ahead = self._under_way, None
        if self._state is not None:
            self._state.owners = [None] * len(self._state.owners)
            with torch.inference_mode():
                self._state.is_done.fill_(True)
        for image in lost:
            image.written.clear()
        return lost

    def _halve(self) -> None:
        import torch

        slots = self.plan.slots // 2
        log.warning("out of memory with %d slots; continuing with %d", self.plan.slots, slots)
        self._set_slots(slots)
        self._state = self._graph = None
        if self._is_gpu:
            torch.cuda.empty_cache()


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
