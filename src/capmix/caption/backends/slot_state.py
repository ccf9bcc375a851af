"""The captions under way in slots.py: their tensors on the device, and one step of all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from capmix.caption.backends.slot_models import Prompted, SlotCache, SlotModel
from capmix.caption.sampling import draw_tokens
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import StreamedImage


@dataclass(frozen=True)
class Owner:
    """The caption in a slot. Copies of the state up to number `since` are of an earlier owner."""

    image: StreamedImage
    number: int
    since: int


@dataclass(frozen=True)
class StateCopy:
    """A copy of the state in host memory, complete after the CUDA event `ready`."""

    number: int
    tensors: tuple[Any, ...]
    ready: Any = None


class SlotState:
    """S captions under way.

    A caption is done when it has drawn one of `ends` or `max_tokens` tokens; then its row is
    frozen. `starts` are the positions of the first tokens, `steps` the numbers of drawn tokens.
    """

    def __init__(
        self,
        model: SlotModel,
        settings: CaptionSettings,
        ends: Any,
        like: Prompted,
        slots: int,
        length: int,
    ):
        import torch

        device = like.logits.device
        zeros = torch.zeros(slots, dtype=torch.int64, device=device)
        self._model, self._wanted, self._ends = model, settings, ends
        self._least = min(settings.min_tokens, settings.max_tokens)
        self.cache = SlotCache(like, slots, length)
        self.rows = torch.arange(slots, device=device)
        self.keys, self.steps, self.starts, self.last = (zeros.clone() for _ in range(4))
        # The last column takes what frozen rows draw.
        self.tokens = zeros.new_zeros(slots, settings.max_tokens + 1)
        self.is_done = torch.ones(slots, dtype=torch.bool, device=device)
        self.is_nan = torch.zeros(slots, dtype=torch.bool, device=device)
        self.owners: list[Owner | None] = [None] * slots
        self.last_copy: StateCopy | None = None
        self.copies = 0
        self._used = slots  # rows in each step

    @property
    def free(self) -> list[int]:
        return [slot for slot, owner in enumerate(self.owners) if owner is None]

    @property
    def images(self) -> list[StreamedImage]:
        """The images under way, each once."""
        return list(dict.fromkeys(owner.image for owner in self.owners if owner is not None))

    def forget(self, image: StreamedImage) -> None:
        """Free the slots of an image. Its captions may go on until the slots are taken."""
        self.owners = [None if one and one.image is image else one for one in self.owners]

    def start(self, slots: Sequence[int], like: Prompted, sources: Any, keys: Any) -> None:
        """Start captions with `keys` in `slots`, each after one of the prompts (`sources`).

        Draws their first tokens.
        """
        import torch

        rows = torch.tensor(slots, dtype=torch.int64, device=self.rows.device)
        self.cache.put(rows, like, sources)
        self.keys[rows], self.starts[rows], self.steps[rows] = keys, like.length, 0
        self.is_done[rows], self.is_nan[rows] = False, False
        self._draw(like.logits[sources], rows)

    def step(self) -> None:
        """Draw one token for each row that is not done. Never waits for the GPU."""
        used = slice(self._used)
        positions = (self.starts + self.steps - 1).masked_fill_(self.is_done, 0)
        self.cache.positions.copy_(positions)
        self._draw(self._model.step(self.last[used], self.cache), self.rows[used])

    def _draw(self, logits: Any, rows: Any) -> None:
        """Draw a token for each of `rows`, int64 (N,), from logits (N, V), unless it is done."""
        import torch

        limit = self._wanted.max_tokens
        logits, steps, was_done = logits.float(), self.steps[rows], self.is_done[rows]
        early = (steps < self._least).unsqueeze(1)
        ends = logits.index_select(1, self._ends).masked_fill(early, float("-inf"))
        logits = logits.index_copy(1, self._ends, ends)
        tokens, is_nan = draw_tokens(logits, self.keys[rows], steps, self._wanted)
        self.tokens[rows, torch.where(was_done, limit, steps)] = tokens
        self.last[rows] = tokens
        self.steps[rows] = steps + ~was_done
        self.is_nan[rows] |= is_nan & ~was_done
        is_end = (tokens.unsqueeze(1) == self._ends).any(1)
        self.is_done[rows] = was_done | is_end | is_nan | (steps + 1 >= limit)

    def narrow(self) -> None:
        """Leave the slots after the last one in use, and positions that none has reached, out of
        the next steps. For CPUs, where a step costs what its rows cost."""
        used = [slot for slot, owner in enumerate(self.owners) if owner is not None]
        self._used = used[-1] + 1
        self.cache.narrow(self._used, int((self.starts + self.steps)[used].max()))

    def copied(self) -> StateCopy:
        """Return done, NaN, steps and tokens, all by slot. From a GPU, the copy is under way."""
        import torch

        self.copies += 1
        tensors = (self.is_done, self.is_nan, self.steps, self.tokens)
        if not self.is_done.is_cuda:
            return StateCopy(self.copies, tensors)
        pinned = tuple(torch.empty_like(one, device="cpu", pin_memory=True) for one in tensors)
        for mine, theirs in zip(pinned, tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        return StateCopy(self.copies, pinned, torch.cuda.current_stream().record_event())


def recorded(step: Callable[[], None]) -> Any:
    """Record a step of the state as a CUDA graph. All rows must be frozen."""
    import torch

    here = torch.cuda.current_stream()
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(3):  # compile, and let the libraries choose their kernels
            step()
        torch.cuda.synchronize()
        # Other threads may allocate pinned memory meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:
            graph.capture_end()
    here.wait_stream(side)
    return graph
