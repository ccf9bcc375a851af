"""Training batches without resampling: each pass visits every sample once.

Each data worker reads its share of the shards of a pass, shuffles the encoded samples in a buffer
that it empties at the end of the pass, and sends chunks of samples. The training process reads
chunks from the workers in turns and starts the next pass when all workers have finished this one.
The incomplete last batch of a pass is filled with the first samples of the next, so no sample is
dropped or repeated. In contrast, open_clip drops the incomplete batch of each worker and restarts
the pass at each checkpoint.

A checkpoint does not affect the stream, and its Position suffices to resume: order, texts and crops
are functions of the seed, the pass and the sample. Each device has its own share of the shards and
finishes its passes independently.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from capmix.engine.batches import batched
from capmix.errors import UserError
from capmix.training.pairs import Pair, PairSource
from capmix.training.preparation import Preparation
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
    """How the shards are divided among readers, and the samples per chunk.

    A position is only valid for the same layout.
    """

    world_size: int
    workers: int
    chunk: int


@dataclass(frozen=True)
class Held:
    """The unused rest of a chunk: samples before `offset` were used in a batch."""

    worker: int
    chunk: int
    offset: int


@dataclass(frozen=True)
class Position:
    """A position in the sample stream of one device.

    In pass `number`, `taken` chunks were read from each worker, and the workers in `ended` have
    finished the pass. `begun` is the epoch in which pass 0 started. `held` is a partly used chunk.
    """

    layout: Layout
    begun: int
    number: int
    taken: tuple[int, ...]
    ended: tuple[int, ...] = ()
    held: Held | None = None

    @classmethod
    def start(cls, layout: Layout, epoch: int) -> "Position":
        """Return the start of a stream that begins in `epoch`."""
        return cls(layout, epoch, 0, (0,) * layout.workers)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Position":
        """Parse a position from `record`. Raises UserError if it is damaged."""
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
    """Samples of one pass from one worker.

    `images` are float32 (N, 3, H, W), `tokens` int64 (N, length); None if no sample was decoded.
    `failed` counts failed samples. `ends` marks the end of the worker's share of the pass.
    """

    images: "torch.Tensor | None" = None
    tokens: "torch.Tensor | None" = None
    failed: int = 0
    ends: bool = False

    def pin_memory(self) -> "Chunk":
        """Return a copy in page-locked memory; called by DataLoader."""
        if self.images is None or self.tokens is None:
            return self
        return replace(self, images=self.images.pin_memory(), tokens=self.tokens.pin_memory())


class PassChunks(IterableDataset[Any]):
    """An infinite stream of one data worker: the chunks of its share of each pass.

    It starts at `start`, with the partly used chunk if there is one. Earlier samples of the pass
    are read but neither decoded nor counted.
    """

    def __init__(
        self,
        source: PairSource,
        place: Place,
        start: Position,
        preparation: Preparation,
        failures: str | None = None,
        seed: int = 0,
        texts: Mapping[str, float] | None = None,
    ):
        self.source, self.place, self.start = source, place, start
        self.preparation, self.failures = preparation, failures
        self.seed, self.texts = seed, texts

    def __iter__(self) -> Iterator[Any]:
        """Yield chunks; after an error, Stopped as the last item."""
        source = self.source.reopened() if get_worker_info() else self.source
        try:
            yield from self._chunks(source)
        except UserError as error:
            yield Stopped(str(error))

    def _chunks(self, source: PairSource) -> Iterator[Chunk]:
        tally, start, worker = SampleTally(self.failures), self.start, self.place.worker
        reader = PairReader(source, tally, self.texts)
        decoder = PairDecoder(self.preparation, tally)
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
        """Yield the worker's share of a pass, which has its own order of shards."""
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
    """Decode pairs. Random transforms are seeded by the pass and the sample."""
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
        return decoder.batch(found) if found else (None, None)


@dataclass(frozen=True)
class _Piece:
    """Decoded samples of a worker's chunk, from `held.offset` on."""

    number: int
    held: Held
    images: "torch.Tensor"
    tokens: "torch.Tensor"

    def split(self, size: int) -> "tuple[_Piece, _Piece]":
        rest = Held(self.held.worker, self.held.chunk, self.held.offset + size)
        first = _Piece(self.number, self.held, self.images[:size], self.tokens[:size])
        return first, _Piece(self.number, rest, self.images[size:], self.tokens[size:])


class PassBatches:
    """The batches of one device. Each iteration over the object yields those of the next epoch.

    `streams` are the chunks of each worker from `start` on. Iterating raises UserError if a worker
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
        """Where the next epoch starts. Only valid between epochs."""
        start = self._start
        held = self._pieces[0].held if self._pieces else self._held
        taken, ended = tuple(self._taken), tuple(sorted(self._ended))
        return Position(start.layout, start.begun, self._number, taken, ended, held)

    def close(self) -> None:
        """Stop the workers. No batches can be read afterwards."""
        self._streams.clear()

    def _take(self, size: int) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return a batch of the oldest decoded samples; at most one piece is left over."""
        import torch

        if self._held is not None:
            self._take_up(self._held)
        pieces = self._pieces
        while sum(len(piece.images) for piece in pieces) < size:
            self._pull()
        # Return a whole chunk without a copy, unless samples of an earlier pass are left.
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
        """Read a chunk of the next worker; start the next pass if all workers have finished."""
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
        """Reread the partly used chunk of the start; its failures are already counted."""
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


def chunk_stream(chunks: PassChunks, in_process: bool, pin: bool = False) -> Iterator[Any]:
    """Return the chunks of one worker, run in this process or in its own, which reads ahead.

    With `pin`, the chunks of a process are in page-locked memory, from which a GPU copies them
    while it computes.
    """
    import torch

    if in_process:
        return iter(chunks)
    # Without a generator, DataLoader would draw from the global one, which the model uses.
    return iter(
        DataLoader(
            chunks,
            batch_size=None,
            num_workers=1,
            multiprocessing_context=CONTEXT,
            pin_memory=pin,
            generator=torch.Generator().manual_seed(0),
        )
    )
