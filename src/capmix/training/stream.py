"""Batches of a training run: shards drawn, samples shuffled, decoded and tokenised.

As open_clip 3.3 does it for `--dataset-resampled` (every worker draws shards with replacement and
shuffles encoded samples in a buffer), but that every draw is a function of the seed, the epoch,
the rank and the worker: a resumed epoch is the epoch that was broken off. Without resampling the
batches are those of passes.py.
"""

import itertools
import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from capmix.errors import UserError
from capmix.models.images import BadImageError, decode_as_stored
from capmix.pool import BadSample
from capmix.training.pairs import Pair, PairSource
from capmix.training.texts import draw_text

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# open_clip_train/data.py: _SAMPLE_SHUFFLE_SIZE and _SAMPLE_SHUFFLE_INITIAL.
BUFFER, INITIAL = 5000, 1000
HOPELESS = 1000
# Workers share counters and take functions of open_clip's with them, which no pickle can.
CONTEXT = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class EpochPlan:
    """How many samples each batch of an epoch has, the same on every device."""

    sizes: list[int]
    workers: int

    @property
    def chunk(self) -> int:
        """The size of a full batch."""
        return max(self.sizes)

    def of_worker(self, worker: int) -> list[int]:
        """The sizes of the batches that one data-loader worker makes: they take turns."""
        return self.sizes[worker :: self.workers]


def plan_epoch(
    samples: int, batch_size: int, world_size: int, workers: int, accumulate: int, exact: bool
) -> EpochPlan:
    """Batches of one device for an epoch of `samples`; `batch_size` is that of one device at once.

    open_clip rounds the number of batches up to a multiple of the workers (data.py, get_wds_dataset
    of 3.3). With `exact` there are as many samples as asked for: the last batch of each device is
    smaller. Raises UserError where `exact` does not divide, or an epoch has no step.
    """
    workers = max(1, workers)
    at_once = batch_size * world_size
    if not exact:
        of_a_worker = math.ceil(math.ceil(samples / at_once) / workers)
        if of_a_worker * workers < accumulate:
            raise UserError(
                f"train: an epoch of {samples:,} samples has {of_a_worker * workers} batches, too "
                f"few for one step of {accumulate}"
            )
        return EpochPlan([batch_size] * of_a_worker * workers, workers)
    steps, rest = divmod(samples, at_once * accumulate)
    if rest % (world_size * accumulate):
        raise UserError(
            f"--exact: an epoch of {samples:,} samples ends with {rest:,}, which do not divide by "
            f"{world_size} devices x {accumulate} accumulated batches; choose other numbers"
        )
    last = [rest // (world_size * accumulate)] * accumulate if rest else []
    return EpochPlan([batch_size] * steps * accumulate + last, workers)


@dataclass
class SampleTally:
    """Counts over all workers of a device, and the file that bad samples are written to, by each
    worker once."""

    failures: str | None = None
    _ok: Any = field(default_factory=lambda: CONTEXT.Value("q"))
    _failed: Any = field(default_factory=lambda: CONTEXT.Value("q"))
    _seen: set[tuple[str, str]] = field(default_factory=set)

    @property
    def ok(self) -> int:
        return int(self._ok.value)

    @property
    def failed(self) -> int:
        return int(self._failed.value)

    def count_ok(self, number: int) -> None:
        with self._ok.get_lock():
            self._ok.value += number

    def add_failed(self, number: int) -> None:
        """Count samples that another tally has written down."""
        with self._failed.get_lock():
            self._failed.value += number

    def count_failed(self, shard: str, key: str, reason: str, detail: str) -> None:
        self.add_failed(1)
        if self.failures is None or (shard, key) in self._seen:
            return
        self._seen.add((shard, key))
        line = {"shard": shard, "key": key, "reason": reason, "detail": detail[:500]}
        with open(self.failures, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


@dataclass(frozen=True)
class Stopped:
    """What a data worker gives in place of a batch when the user has to fix something: an exception
    would reach the trainer with its type and message wrapped up."""

    reason: str


@dataclass(frozen=True)
class Place:
    """Which part of the stream this is: of `world_size` devices with `workers` workers each."""

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def number(self) -> int:
        return self.rank * self.workers + self.worker

    @property
    def of(self) -> int:
        return self.world_size * self.workers


@dataclass
class PairReader:
    """Reads the pairs of shards. `visit` names one visit of one shard: the same name draws the same
    of `texts`."""

    source: PairSource
    tally: SampleTally
    texts: Mapping[str, float] | None = None
    _barren: int = 0

    def pairs(self, shard: str, visit: str) -> Iterator[Pair]:
        """The pairs of one shard; bad samples are counted.

        Raises UserError when as many shards in a row as there are have given nothing.
        """
        found = 0
        for pair in _read(self.source, shard):
            if isinstance(pair, BadSample):
                self.tally.count_failed(shard, pair.key, pair.reason, pair.detail)
                continue
            found += 1
            if self.texts:
                name = f"{visit}/{pair.key}"
                text = draw_text(pair.captions, self.texts, name, otherwise=pair.text)
                pair = Pair(pair.key, pair.image, text)
            yield pair
        self._barren = 0 if found else self._barren + 1
        if self._barren >= max(10, len(self.source.shards)):
            raise UserError(
                f"train: {self._barren} shards in a row gave no image with a text; failures.jsonl "
                "of the run says why"
            )


@dataclass
class PairDecoder:
    """Makes images and texts of pairs into tensors."""

    preprocess: Callable[[Any], "torch.Tensor"]
    tokenize: Callable[[str], "torch.Tensor"]
    tally: SampleTally
    _failures: int = 0

    def decode(self, shard: str, pair: Pair) -> tuple["torch.Tensor", "torch.Tensor"] | None:
        """Image and tokens, or None for an image that cannot be decoded, which is counted.

        Raises UserError where no image of a thousand in a row can be decoded.
        """
        try:
            image = decode_as_stored(pair.image)
        except BadImageError as error:
            self.tally.count_failed(shard, pair.key, error.reason, str(error))
            self._failures += 1
            if self._failures == HOPELESS:
                raise UserError(
                    f"train: {self._failures:,} images in a row cannot be decoded, the last for: "
                    f"{error}"
                ) from error
            return None
        self._failures = 0
        return self.preprocess(image), self.tokenize(pair.text)


class TrainingBatches(IterableDataset[Any]):
    """Batches of images float32 (N, 3, H, W) and tokens int64 (N, length) for one device, of shards
    that are drawn with replacement.

    `epoch` is asked at the start of each epoch, in the worker. `texts` are drawn from at each
    visit.
    """

    def __init__(
        self,
        source: PairSource,
        plan: EpochPlan,
        epoch: Callable[[], int],
        preprocess: Callable[[Any], "torch.Tensor"],
        tokenize: Callable[[str], "torch.Tensor"],
        tally: SampleTally,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        texts: Mapping[str, float] | None = None,
    ):
        self.source, self.plan, self.epoch, self.tally = source, plan, epoch, tally
        self.preprocess, self.tokenize = preprocess, tokenize
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.texts = texts

    def __iter__(self) -> Iterator[Any]:
        """Pairs of images and tokens; or, as the last item, Stopped."""
        try:
            yield from self._batches()
        except UserError as error:
            yield Stopped(str(error))

    def _batches(self) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
        import torch

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:
            self.source = self.source.reopened()
        place = Place(self.rank, self.world_size, worker, workers)
        sizes, epoch = self.plan.of_worker(worker), self.epoch()
        rng = random.Random(f"{self.seed}/{epoch}/{place.number}")
        torch.manual_seed(rng.getrandbits(63))  # the crops of torchvision draw from it
        random.seed(rng.getrandbits(63))
        reader = PairReader(self.source, self.tally, self.texts)
        pairs = drawn_pairs(reader, rng, f"{self.seed}/{epoch}/{place.number}")
        decoder = PairDecoder(self.preprocess, self.tokenize, self.tally)
        decoded = (decoder.decode(*one) for one in shuffled(pairs, rng, BUFFER, INITIAL))
        ready = (one for one in decoded if one is not None)
        for size in sizes:
            images, tokens = zip(*itertools.islice(ready, size), strict=True)
            self.tally.count_ok(size)
            yield torch.stack(images), torch.stack(tokens)


def drawn_pairs(reader: PairReader, rng: random.Random, name: str) -> Iterator[tuple[str, Pair]]:
    """Pairs without end, with the shards that they come from: shards are drawn with replacement.

    `name` is that of these draws among all.
    """
    source = reader.source
    weights = None if source.weights is None else list(itertools.accumulate(source.weights))
    for number in itertools.count():
        shard = rng.choices(source.shards, cum_weights=weights)[0]
        for pair in reader.pairs(shard, f"{name}/{number}"):
            yield shard, pair


def _read(source: PairSource, shard: str) -> Iterator[Pair | BadSample]:
    try:
        yield from source.read(shard)
    except UserError:
        raise
    except Exception as error:  # clients of remote stores raise many types; others go on
        yield BadSample("", "unreadable_shard", f"{type(error).__name__}: {error}")


def shuffled(items: Iterator[Item], rng: random.Random, size: int, initial: int) -> Iterator[Item]:
    """Items in a random order, out of a buffer that grows from `initial` to `size` on the way."""
    buffer = list(itertools.islice(items, initial))
    for item in items:
        buffer.append(item)
        if len(buffer) < size:
            buffer += itertools.islice(items, 1)
        last = rng.randrange(len(buffer))
        buffer[last], buffer[-1] = buffer[-1], buffer[last]
        yield buffer.pop()
    rng.shuffle(buffer)
    yield from buffer
