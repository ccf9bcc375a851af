"""Batches of a training run without resampling: pass after pass, each over every sample once.

Each data worker reads its share of a pass's shards, shuffles the encoded samples in a buffer that
it empties at the end of the pass, and gives them in chunks. The trainer's process takes chunks in
turns and begins the next pass when all workers have ended this one. The last, incomplete batch of a
pass is filled up with the first samples of the next, so that none is dropped or repeated:
open_clip drops the incomplete batch of each worker, and begins anew at each checkpoint.

A checkpoint changes nothing in the stream, and its Position is enough to go on from there: order,
texts and crops are a function of seed, pass and sample. Devices have shares of their own and end
their passes independently.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from capmix.engine.batches import batched
from capmix.errors import UserError
from capmix.training.pairs import Pair, PairSource
from capmix.training.stream import (
    BUFFER,
    CONTEXT,
    INITIAL,
    EpochPlan,
    PairDecoder,
    PairReader,
    Place,
    SampleTally,
    Stopped,
    shuffled,
)

if TYPE_CHECKING:
    import torch

SEED_BYTES = 8


@dataclass(frozen=True)
class Layout:
    """Among how many readers the shards are shared out, and the samples of a chunk. Where they
    differ, a position says nothing."""

    world_size: int
    workers: int
    chunk: int


@dataclass(frozen=True)
class Held:
    """The rest of a chunk of which a batch took the samples before `offset`."""

    worker: int
    chunk: int
    offset: int


@dataclass(frozen=True)
class Position:
    """A place in the stream of one device: in pass `number`, how many chunks were `taken` from each
    worker, and which workers have `ended` the pass. `begun` is the epoch in which pass 0 began."""

    layout: Layout
    begun: int
    number: int
    taken: tuple[int, ...]
    ended: tuple[int, ...] = ()
    held: Held | None = None

    @classmethod
    def start(cls, layout: Layout, epoch: int) -> "Position":
        """The beginning of a stream that starts with an epoch."""
        return cls(layout, epoch, 0, (0,) * layout.workers)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Position":
        """The position that `record` was made of. Raises UserError where it is none."""
        try:
            return TypeAdapter(cls).validate_json(json.dumps(record), strict=True)
        except (TypeError, ValidationError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"train: a position-<rank>.json of the run is damaged ({why}); use a new --out"
            ) from error

    @property
    def record(self) -> dict[str, Any]:
        """The position as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Chunk:
    """Samples of one pass that a worker has read: images float32 (N, 3, H, W) and tokens int64
    (N, length), None for none. `failed` counts those that gave nothing; `ends` its share."""

    images: "torch.Tensor | None" = None
    tokens: "torch.Tensor | None" = None
    failed: int = 0
    ends: bool = False


class PassChunks(IterableDataset[Any]):
    """What one data worker gives: the chunks of its share of each pass, without end.

    It begins at `start`, with the chunk that is held there. What comes before is read, and neither
    decoded nor counted.
    """

    def __init__(
        self,
        source: PairSource,
        place: Place,
        start: Position,
        preprocess: Callable[[Any], "torch.Tensor"],
        tokenize: Callable[[str], "torch.Tensor"],
        failures: str | None = None,
        seed: int = 0,
        texts: Mapping[str, float] | None = None,
    ):
        self.source, self.place, self.start = source, place, start
        self.preprocess, self.tokenize, self.failures = preprocess, tokenize, failures
        self.seed, self.texts = seed, texts

    def __iter__(self) -> Iterator[Any]:
        """Chunks; or, as the last item, Stopped."""
        source = self.source.reopened() if get_worker_info() else self.source
        try:
            yield from self._chunks(source)
        except UserError as error:
            yield Stopped(str(error))

    def _chunks(self, source: PairSource) -> Iterator[Chunk]:
        tally, start, worker = SampleTally(self.failures), self.start, self.place.worker
        reader = PairReader(source, tally, self.texts)
        decoder = PairDecoder(self.preprocess, self.tokenize, tally)
        held = start.held.chunk if start.held and start.held.worker == worker else None
        counted = 0
        for number in itertools.count(start.number):
            resumes = number == start.number
            taken = start.taken[worker] if resumes else 0
            ended = resumes and worker in start.ended
            if ended and held is None:
                continue
            name = f"{self.seed}/{start.begun}/{number}"
            for index, some in enumerate(batched(self._shuffled(reader, name), start.layout.chunk)):
                if index < taken and not (resumes and index == held):
                    counted = tally.failed
                    continue
                images, tokens = _decoded(decoder, some, name)
                yield Chunk(images, tokens, tally.failed - counted)
                counted = tally.failed
            if not ended:
                yield Chunk(failed=tally.failed - counted, ends=True)
            counted = tally.failed

    def _shuffled(self, reader: PairReader, name: str) -> Iterator[tuple[str, Pair]]:
        """The worker's share of a pass over all shards, which has an order of its own."""
        order = list(reader.source.shards)
        random.Random(name).shuffle(order)
        pairs = (
            (shard, pair)
            for shard in order[self.place.number :: self.place.of]
            for pair in reader.pairs(shard, name)
        )
        return shuffled(pairs, random.Random(f"{name}/{self.place.number}"), BUFFER, INITIAL)


def _decoded(
    decoder: PairDecoder, pairs: Sequence[tuple[str, Pair]], name: str
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Images and tokens of pairs; what transforms draw is a function of the pass and the sample."""
    import torch

    found = []
    with torch.random.fork_rng(devices=[]):
        for shard, pair in pairs:
            digest = hashlib.blake2b(f"{name}/{shard}/{pair.key}".encode(), digest_size=SEED_BYTES)
            seed = int.from_bytes(digest.digest(), "big")
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            one = decoder.decode(shard, pair)
            if one is not None:
                found.append(one)
    if not found:
        return None, None
    images, tokens = zip(*found, strict=True)
    return torch.stack(images), torch.stack(tokens)


@dataclass(frozen=True)
class _Piece:
    """Samples that are ready, from `offset` of a worker's chunk on."""

    number: int
    held: Held
    images: "torch.Tensor"
    tokens: "torch.Tensor"

    def split(self, size: int) -> "tuple[_Piece, _Piece]":
        rest = Held(self.held.worker, self.held.chunk, self.held.offset + size)
        first = _Piece(self.number, self.held, self.images[:size], self.tokens[:size])
        return first, _Piece(self.number, rest, self.images[size:], self.tokens[size:])


class PassBatches:
    """The batches of one device, epoch by epoch: each iteration gives those of the next epoch.

    `streams` are the chunks of each worker from `start` on. Raises UserError where a worker has
    stopped for a reason that the user can fix.
    """

    def __init__(
        self,
        streams: Sequence[Iterator[Any]],
        plan: EpochPlan,
        tally: SampleTally,
        start: Position,
    ):
        self._streams, self._plan, self._tally, self._start = list(streams), plan, tally, start
        self._number = start.number
        self._taken, self._ended = list(start.taken), set(start.ended)
        self._pieces: list[_Piece] = []
        self._held = start.held

    def __iter__(self) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
        for size in self._plan.sizes:
            yield self._take(size)
            self._tally.count_ok(size)

    @property
    def position(self) -> Position:
        """Where the next epoch begins, between two epochs."""
        start = self._start
        held = self._pieces[0].held if self._pieces else self._held
        taken, ended = tuple(self._taken), tuple(sorted(self._ended))
        return Position(start.layout, start.begun, self._number, taken, ended, held)

    def close(self) -> None:
        """End the workers; there is no batch after this."""
        self._streams.clear()

    def _take(self, size: int) -> tuple["torch.Tensor", "torch.Tensor"]:
        """A batch of the oldest samples that are ready; one piece is left over at most."""
        import torch

        if self._held is not None:
            self._take_up(self._held)
        pieces = self._pieces
        while sum(len(piece.images) for piece in pieces) < size:
            self._pull()
        # A whole chunk need not be copied, where no sample of an earlier pass waits.
        same_pass = pieces[0].number == pieces[-1].number
        if len(pieces) <= 2 and same_pass and len(pieces[-1].images) == size:
            last = pieces.pop()
            return last.images, last.tokens
        chosen: list[_Piece] = []
        while size:
            piece = pieces.pop(0)
            if len(piece.images) > size:
                piece, rest = piece.split(size)
                pieces.insert(0, rest)
            chosen.append(piece)
            size -= len(piece.images)
        return torch.cat([p.images for p in chosen]), torch.cat([p.tokens for p in chosen])

    def _pull(self) -> None:
        """One chunk of the worker whose turn it is; the next pass begins where all have ended."""
        workers = range(len(self._streams))
        if len(self._ended) == len(workers):
            self._number, self._taken, self._ended = self._number + 1, [0 for _ in workers], set()
        going = (worker for worker in workers if worker not in self._ended)
        worker = min(going, key=lambda worker: (self._taken[worker], worker))
        chunk = self._next(worker)
        self._tally.add_failed(chunk.failed)
        if chunk.ends:
            self._ended.add(worker)
            return
        held = Held(worker, self._taken[worker], 0)
        self._taken[worker] += 1
        if chunk.images is not None and chunk.tokens is not None:
            self._pieces.append(_Piece(self._number, held, chunk.images, chunk.tokens))

    def _take_up(self, held: Held) -> None:
        """The chunk that a batch before the start took samples of; its failures were counted."""
        chunk, self._held = self._next(held.worker), None
        if chunk.images is None or chunk.tokens is None or len(chunk.images) <= held.offset:
            raise UserError("train: the data changed since the last checkpoint; use a new --out")
        whole = Held(held.worker, held.chunk, 0)
        _, rest = _Piece(self._number, whole, chunk.images, chunk.tokens).split(held.offset)
        self._pieces.append(rest)

    def _next(self, worker: int) -> Chunk:
        item: Chunk | Stopped = next(self._streams[worker])
        if isinstance(item, Stopped):
            raise UserError(item.reason)
        return item


def chunk_stream(chunks: PassChunks, in_process: bool) -> Iterator[Any]:
    """The chunks of one worker, from this process or from one of its own that reads ahead."""
    import torch

    if in_process:
        return iter(chunks)
    # A generator of its own: what the model draws does not depend on where the run began.
    return iter(
        DataLoader(
            chunks,
            batch_size=None,
            num_workers=1,
            multiprocessing_context=CONTEXT,
            generator=torch.Generator().manual_seed(0),
        )
    )
