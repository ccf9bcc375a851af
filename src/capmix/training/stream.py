"""Training batches with resampling: draw shards, shuffle samples, decode and tokenise them.

As in open_clip 3.3 with `--dataset-resampled`, each worker draws shards with replacement and
shuffles encoded samples in a buffer. In addition, all draws are functions of the seed, the epoch,
the rank and the worker, so a resumed epoch is identical to the interrupted one. passes.py reads
batches without resampling.
"""

import itertools
import json
import math
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from capmix.errors import UserError
from capmix.models.images import BadImageError, decode_as_stored
from capmix.pool import BadSample
from capmix.training.pairs import Pair, PairSource
from capmix.training.preparation import Preparation
from capmix.training.texts import draw_text

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
# open_clip_train/data.py: _SAMPLE_SHUFFLE_SIZE and _SAMPLE_SHUFFLE_INITIAL.
BUFFER, INITIAL = 5000, 1000
MAX_UNDECODABLE = 1000  # images in a row
# Workers share counters and use functions of open_clip that cannot be pickled.
CONTEXT = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class EpochPlan:
    """The sizes of the batches of an epoch, the same on every device."""

    sizes: list[int]
    workers: int

    @property
    def chunk(self) -> int:
        """The size of a full batch."""
        return max(self.sizes)

    def of_worker(self, worker: int) -> list[int]:
        """Return the batch sizes of one data worker; the workers take turns."""
        return self.sizes[worker :: self.workers]


def plan_epoch(
    samples: int, batch_size: int, world_size: int, workers: int, accumulate: int, exact: bool
) -> EpochPlan:
    """Plan the batches of one device for an epoch of `samples`; `batch_size` is per device.

    As in open_clip (3.3, data.py, get_wds_dataset), the number of batches is rounded up to a
    multiple of the workers. With `exact`, an epoch has exactly `samples` samples: the last batches
    of each device are smaller. Raises UserError if this does not divide evenly, or if an epoch has
    no step.
    """
    workers = max(1, workers)
    at_once = batch_size * world_size
    if not exact:
        of_a_worker = math.ceil(math.ceil(samples / at_once) / workers)
        if of_a_worker * workers < accumulate:
            raise UserError(
                f"train: an epoch of {samples:,} samples has only {of_a_worker * workers} batches, "
                f"but one step accumulates {accumulate}; reduce --accumulate or --batch-size"
            )
        return EpochPlan([batch_size] * of_a_worker * workers, workers)
    steps, rest = divmod(samples, at_once * accumulate)
    if rest % (world_size * accumulate):
        raise UserError(
            f"--exact: the last step of an epoch of {samples:,} samples has {rest:,}, which is not "
            f"divisible by {world_size} devices x {accumulate} accumulation steps; change "
            "--samples, --batch-size or --accumulate"
        )
    last = [rest // (world_size * accumulate)] * accumulate if rest else []
    return EpochPlan([batch_size] * steps * accumulate + last, workers)


@dataclass
class SampleTally:
    """Sample counts over all workers of a device.

    Each worker also writes each bad sample once to the file `failures`.
    """

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
        """Count failed samples that another tally has already written to the file."""
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
    """Sent by a data worker instead of a batch after a UserError with this message.

    An exception would be wrapped on its way to the training process and lose its type.
    """

    reason: str


@dataclass(frozen=True)
class Place:
    """The position of a data worker: `rank` of `world_size` devices, `worker` of `workers`."""

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
    """Reads the pairs of shards.

    With `texts`, a text is drawn for each pair; the draw is seeded by the name of the visit.
    """

    source: PairSource
    tally: SampleTally
    texts: Mapping[str, float] | None = None
    _barren: int = 0

    def pairs(self, shard: str, visit: str) -> Iterator[Pair]:
        """Yield the pairs of a shard; count bad samples. `visit` identifies this reading of it.

        Raises UserError if as many shards in a row as the source has (at least 10) have no pair.
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
                f"train: {self._barren} shards in a row had no usable pair; see failures.jsonl"
            )


@dataclass
class PairDecoder:
    """Decodes and crops the images of pairs, and makes batches of them and their texts."""

    preparation: Preparation
    tally: SampleTally
    _failures: int = 0

    def decode(self, shard: str, pair: Pair) -> tuple[Any, str] | None:
        """Return crop and text; None, counted as failed, if the image cannot be decoded.

        Raises UserError after MAX_UNDECODABLE such images in a row.
        """
        try:
            image = decode_as_stored(pair.image)
        except BadImageError as error:
            self.tally.count_failed(shard, pair.key, error.reason, str(error))
            self._failures += 1
            if self._failures == MAX_UNDECODABLE:
                raise UserError(
                    f"train: {self._failures:,} images in a row cannot be decoded; last error: "
                    f"{error}"
                ) from error
            return None
        self._failures = 0
        return self.preparation.crop(image), pair.text

    def batch(self, decoded: Iterable[tuple[Any, str]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Return the images and the tokens of at least one decoded pair."""
        crops, texts = zip(*decoded, strict=True)
        return self.preparation.stack(crops), self.preparation.tokenize(texts)


class TrainingBatches(IterableDataset[Any]):
    """Batches for one device from shards that are drawn with replacement.

    A batch has images, float32 (N, 3, H, W), and tokens, int64 (N, length). `epoch` is called in
    the worker at the start of each epoch. With `texts`, a text is drawn on each visit of a sample.
    """

    def __init__(
        self,
        source: PairSource,
        plan: EpochPlan,
        epoch: Callable[[], int],
        preparation: Preparation,
        tally: SampleTally,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        texts: Mapping[str, float] | None = None,
    ):
        self.source, self.plan, self.epoch, self.tally = source, plan, epoch, tally
        self.preparation = preparation
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.texts = texts

    def __iter__(self) -> Iterator[Any]:
        """Yield pairs of images and tokens; after an error, Stopped as the last item."""
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
        torch.manual_seed(rng.getrandbits(63))  # used by torchvision's random crops
        random.seed(rng.getrandbits(63))
        reader = PairReader(self.source, self.tally, self.texts)
        pairs = drawn_pairs(reader, rng, f"{self.seed}/{epoch}/{place.number}")
        decoder = PairDecoder(self.preparation, self.tally)
        decoded = (decoder.decode(*one) for one in shuffled(pairs, rng, BUFFER, INITIAL))
        ready = (one for one in decoded if one is not None)
        for size in sizes:
            batch = decoder.batch(itertools.islice(ready, size))
            self.tally.count_ok(size)
            yield batch


def drawn_pairs(reader: PairReader, rng: random.Random, name: str) -> Iterator[tuple[str, Pair]]:
    """Yield (shard, pair) endlessly from shards that are drawn with replacement.

    `name` identifies this sequence of draws.
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
    except Exception as error:  # remote clients raise many types; other shards may work
        yield BadSample("", "unreadable_shard", f"{type(error).__name__}: {error}")


def shuffled(items: Iterator[Item], rng: random.Random, size: int, initial: int) -> Iterator[Item]:
    """Yield items in random order from a buffer that grows from `initial` to `size`."""
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
