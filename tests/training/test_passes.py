import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import image_bytes

from capmix.errors import UserError
from capmix.pool import BadSample
from capmix.training.pairs import Pair
from capmix.training.passes import (
    Chunk,
    Layout,
    PassBatches,
    PassChunks,
    Position,
    chunk_stream,
)
from capmix.training.preparation import Preparation
from capmix.training.stream import EpochPlan, Place, SampleTally, plan_epoch

DOT = image_bytes(0, (1, 1), "PNG")
BATCH = 128


@dataclass(frozen=True)
class Numbered:
    """Pairs with the texts 0 to N - 1 in shards of several sizes.

    The images of `broken` cannot be decoded; `textless` pairs have no text.
    """

    samples: int
    per_shard: int
    broken: frozenset[int] = frozenset()
    textless: frozenset[int] = frozenset()
    weights: Sequence[float] | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def _bounds(self) -> list[int]:
        """Shard sizes grow by a third from the first to the last."""
        count = max(4, self.samples // self.per_shard)
        sizes = [3 * count + shard for shard in range(count)]
        ends = [self.samples * part // sum(sizes) for part in itertools.accumulate(sizes)]
        return [0, *ends]

    @property
    def shards(self) -> list[str]:
        return [str(number) for number in range(len(self._bounds) - 1)]

    def read(self, shard: str) -> Iterator[Pair | BadSample]:
        first, end = self._bounds[int(shard) : int(shard) + 2]
        for number in range(first, end):
            if number in self.textless:
                yield BadSample(str(number), "no_text", "none")
                continue
            image = b"no image" if number in self.broken else DOT
            yield Pair(str(number), image, str(number), {"caption_raw": "r", "caption_b": "b"})

    def reopened(self) -> "Numbered":
        return self


def crop(image: Any) -> torch.Tensor:
    """Draw as transforms do, from torch's generator and from Python's."""
    return torch.tensor([float(torch.rand(1)), random.random()])


def numbers(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[int(text)] for text in texts])


PREPARATION = Preparation(crop, torch.stack, numbers)


def stream_of(
    source: Numbered,
    plan: EpochPlan,
    tally: SampleTally,
    start: Position | None = None,
    in_process: bool = True,
    place: Place = Place(),  # noqa: B008
    **more: Any,
) -> PassBatches:
    layout = Layout(place.world_size, plan.workers, plan.chunk)
    start = start or Position.start(layout, 0)
    chunks = [
        PassChunks(
            source,
            Place(place.rank, place.world_size, worker, plan.workers),
            start,
            PREPARATION,
            tally.failures,
            **more,
        )
        for worker in range(plan.workers)
    ]
    return PassBatches([chunk_stream(one, in_process) for one in chunks], plan, tally, start)


Seen = list[tuple[int, float, float]]


def epoch_of(batches: PassBatches) -> Seen:
    """Return the sample numbers of one epoch with the random draws of their crops."""
    found: Seen = []
    for images, tokens in batches:
        assert len(images) == len(tokens)
        found += [(int(t), *map(float, i)) for i, t in zip(images, tokens, strict=True)]
    return found


def reread(position: Position) -> Position:
    return Position.read(json.loads(json.dumps(position.record)))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("samples", "per_shard"),
    [(64, 10), (1000, 90), (2300, 256), pytest.param(10_000, 700, marks=pytest.mark.slow)],
)
def test_each_pass_sees_every_sample_once_resumed_or_not(
    samples: int, per_shard: int, workers: int
) -> None:
    """Three checkpoints in two passes: the first two end in the middle of a pass."""
    source = Numbered(samples, per_shard)
    plan = plan_epoch(2 * samples // 3, BATCH, 1, workers, 1, exact=False)
    whole = stream_of(source, plan, SampleTally())
    epochs = [epoch_of(whole) for _ in range(3)]
    stream = [one for epoch in epochs for one in epoch]
    passes = len(stream) // samples
    assert passes >= 2
    for first in range(0, passes * samples, samples):
        seen = [key for key, *_ in stream[first : first + samples]]
        assert sorted(seen) == list(range(samples))
    assert len(stream) == len(set(stream))  # each pass draws new crops

    resumed, position = [], None
    for _ in range(3):
        part = stream_of(source, plan, SampleTally(), position)
        resumed.append(epoch_of(part))
        position = reread(part.position)
    assert resumed == epochs


@pytest.mark.parametrize("workers", [1, 4])
def test_an_epoch_of_as_many_samples_as_there_are_is_a_pass(workers: int) -> None:
    """With --exact; without it, samples of the next pass fill the last batch."""
    source = Numbered(2300, 256)
    exact = plan_epoch(2300, BATCH, 1, workers, 1, exact=True)
    batches = stream_of(source, exact, SampleTally())
    for _ in range(3):
        assert sorted(key for key, *_ in epoch_of(batches)) == list(range(2300))
    rounded = plan_epoch(2300, BATCH, 1, workers, 1, exact=False)
    seen = Counter(key for key, *_ in epoch_of(stream_of(source, rounded, SampleTally())))
    assert len(seen) == 2300
    assert seen.total() == {1: 18, 4: 20}[workers] * BATCH


def test_processes_give_what_one_process_gives() -> None:
    source = Numbered(500, 50)
    plan = plan_epoch(700, 32, 1, 2, 1, exact=False)
    expected = stream_of(source, plan, SampleTally())
    found = stream_of(source, plan, SampleTally(), in_process=False)
    for _ in range(2):
        assert epoch_of(found) == epoch_of(expected)
    position = reread(found.position)
    found.close()
    resumed = stream_of(source, plan, SampleTally(), position, in_process=False)
    assert epoch_of(resumed) == epoch_of(expected)
    resumed.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_samples_cost_no_other_and_are_counted_alike_after_a_resume(
    workers: int, tmp_path: Path
) -> None:
    draws = random.Random(0)
    bad = draws.sample(range(1000), 200)
    source = Numbered(1000, 90, frozenset(bad[:150]), frozenset(bad[150:]))
    plan = plan_epoch(500, 64, 1, workers, 1, exact=False)
    tally = SampleTally(str(tmp_path / "failures.jsonl"))
    whole = stream_of(source, plan, tally)
    epochs, counts = [], []
    for _ in range(6):
        epochs.append(epoch_of(whole))
        counts.append((tally.ok, tally.failed))
    stream = [key for epoch in epochs for key, *_ in epoch]
    for first in range(0, 3 * 800, 800):
        assert sorted(stream[first : first + 800]) == sorted(set(range(1000)) - set(bad))
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    # Each worker records a sample once.
    assert {json.loads(line)["key"] for line in lines} == {str(one) for one in bad}

    position, ok, failed = None, 0, 0
    for epoch, count in zip(epochs, counts, strict=True):
        again = SampleTally()
        part = stream_of(source, plan, again, position)
        assert epoch_of(part) == epoch
        ok, failed = ok + again.ok, failed + again.failed
        assert (ok, failed) == count
        position = reread(part.position)


def test_devices_share_out_each_pass() -> None:
    source = Numbered(2300, 256)
    plan = EpochPlan([1], 2)
    seen: list[int] = []
    for rank in (0, 1):
        share = stream_of(source, plan, SampleTally(), place=Place(rank, 2))
        while share.position.number == 0:
            seen += [key for key, *_ in epoch_of(share)]
        seen.pop()  # the first of the next pass
    assert sorted(seen) == list(range(2300))


def test_a_visit_draws_a_text_by_its_pass_and_not_by_its_epoch() -> None:
    source = Numbered(300, 50)
    plan = EpochPlan([300], 1)

    def texts_of(epochs: int, size: int) -> list[list[int]]:
        chunks = PassChunks(
            source,
            Place(),
            Position.start(Layout(1, 1, size), 0),
            Preparation(crop, torch.stack, lambda texts: torch.tensor([ord(t[0]) for t in texts])),
            texts={"raw": 1.0, "b": 1.0},
        )
        batches = PassBatches(
            [iter(chunks)],
            EpochPlan([size], 1),
            SampleTally(),
            Position.start(Layout(1, 1, size), 0),
        )
        return [[int(t) for _, tokens in batches for t in tokens] for _ in range(epochs)]

    first, second = texts_of(2, plan.chunk)
    assert first != second
    thirds = [one for third in texts_of(3, 100) for one in third]
    assert thirds == first
    assert 100 < first.count(ord("b")) < 200


def test_images_that_never_decode_end_the_run_however_short_a_pass_is() -> None:
    source = Numbered(64, 10, broken=frozenset(range(64)))
    with pytest.raises(UserError, match="1,000 images in a row cannot be decoded"):
        epoch_of(stream_of(source, EpochPlan([8], 1), SampleTally()))


def test_shards_that_give_nothing_end_the_run() -> None:
    source = Numbered(64, 10, textless=frozenset(range(64)))
    with pytest.raises(UserError, match="had no usable pair"):
        epoch_of(stream_of(source, EpochPlan([8], 1), SampleTally()))


def test_a_position_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="use a new --out"):
        Position.read({"held": None})


def test_both_tensors_of_a_chunk_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DataLoader does in its thread, which needs a GPU."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    chunk = Chunk(torch.zeros(2, 3), torch.zeros(2, 4), failed=5, ends=False)
    pinned = pin_memory(chunk, "cuda")
    assert pinned.images.unique().tolist() == pinned.tokens.unique().tolist() == [1.0]
    assert pinned.failed == 5
    end = Chunk(failed=3, ends=True)
    assert pin_memory(end, "cuda") == end
