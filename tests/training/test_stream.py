import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import image_bytes

from capmix.errors import UserError
from capmix.pool import BadSample
from capmix.training.pairs import Pair
from capmix.training.preparation import Preparation
from capmix.training.scales import SCALES
from capmix.training.stream import (
    PairReader,
    SampleTally,
    Stopped,
    TrainingBatches,
    drawn_pairs,
    plan_epoch,
    shuffled,
)


class Listed:
    """Pairs of a few shards in memory; None as a text is a broken sample."""

    weights: Sequence[float] | None = None
    identity: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, shards: dict[str, list[str | None]]):
        self.contents = shards
        self.shards = list(shards)

    def read(self, shard: str) -> Iterator[Pair | BadSample]:
        for number, text in enumerate(self.contents[shard]):
            key = f"{shard}-{number}"
            if text is None:
                yield BadSample(key, "no_text", "none")
            else:
                yield Pair(key, image_bytes(number), text, {"caption_raw": text, "caption_b": "b"})

    def reopened(self) -> "Listed":
        return self


SIX = {f"s{i}": [f"{i}/{j}" for j in range(5)] for i in range(6)}


@pytest.mark.parametrize(
    ("scale", "workers", "steps"),
    [
        ("small", 1, 3125), ("small", 4, 3140), ("small", 8, 3160),
        ("medium", 4, 31_260), ("large", 4, 156_260), ("xlarge", 4, 142_060),
    ],
)  # fmt: skip
def test_steps_round_up_for_each_worker_as_open_clips_do(
    scale: str, workers: int, steps: int
) -> None:
    """Steps of open_clip's get_wds_dataset for DataComp's five epochs on 8 devices."""
    known = SCALES[scale]
    plan = plan_epoch(known.samples // 5, known.batch_size // 8, 8, workers, 1, exact=False)
    assert 5 * len(plan.sizes) == steps


def test_an_exact_epoch_of_datacomps_scales_sees_all_of_its_samples() -> None:
    for scale in SCALES.values():
        epoch = scale.samples // scale.checkpoints
        plan = plan_epoch(epoch, scale.batch_size // 8, 8, 4, 1, exact=True)
        assert 8 * sum(plan.sizes) == epoch


@given(
    st.integers(1, 2000), st.integers(1, 16), st.integers(1, 4), st.integers(0, 5),
    st.integers(1, 3),
)  # fmt: skip
def test_an_exact_epoch_has_as_many_samples_and_whole_accumulations(
    samples: int, batch: int, world: int, workers: int, accumulate: int
) -> None:
    assume(samples % (world * accumulate) == 0)
    plan = plan_epoch(samples, batch, world, workers, accumulate, exact=True)
    assert sum(plan.sizes) * world == samples
    assert len(plan.sizes) % accumulate == 0
    assert max(plan.sizes) <= batch
    of_workers = [plan.of_worker(worker) for worker in range(plan.workers)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*of_workers))
    assert [size for size in turns if size is not None] == plan.sizes


def test_an_epoch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="not divisible by 2 devices"):
        plan_epoch(101, 10, 2, 1, 1, exact=True)


def visits(
    source: Listed, number: int, texts: dict[str, float] | None = None, name: str = "0/0/0"
) -> list[str]:
    reader = PairReader(source, SampleTally(), texts)
    stream = drawn_pairs(reader, random.Random(0), name)
    return [pair.text for _, pair in itertools.islice(stream, number)]


def test_shards_are_drawn_by_their_weights() -> None:
    source = Listed({"a": ["a"], "b": ["b"]})
    source.weights = [1.0, 3.0]
    drawn = Counter(visits(source, 4000))
    assert abs(drawn["b"] - 3000) < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_each_visit_draws_a_text_and_draws_it_again_after_a_restart() -> None:
    texts = {"raw": 1.0, "b": 1.0}
    first = visits(Listed(SIX), 300, texts=texts)
    assert first == visits(Listed(SIX), 300, texts=texts)
    assert first != visits(Listed(SIX), 300, texts=texts, name="0/1/0")
    assert abs(first.count("b") - 150) < 4 * math.sqrt(300 * 0.25)


def test_bad_samples_are_counted_and_written_once(tmp_path: Path) -> None:
    tally = SampleTally(str(tmp_path / "failures.jsonl"))
    source = Listed({"a": ["x", None]})
    stream = drawn_pairs(PairReader(source, tally), random.Random(0), "0/0/0")
    assert [pair.text for _, pair in itertools.islice(stream, 4)] == ["x"] * 4
    assert tally.failed == 3
    (line,) = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "shard": "a", "key": "a-1", "reason": "no_text", "detail": "none",
    }  # fmt: skip


def test_no_two_visits_draw_by_the_same_name() -> None:
    """Draws differ between visits and between workers."""
    texts = {"raw": 1.0, "b": 1.0}
    one = {f"s{i}": ["x"] for i in range(400)}
    first, other = (visits(Listed(one), 800, texts, f"0/0/{worker}") for worker in (0, 1))
    assert first[:200] != first[200:400]
    assert first != other


def test_a_store_that_fails_costs_one_shard() -> None:
    class Failing(Listed):
        def read(self, shard: str) -> Iterator[Pair | BadSample]:
            if shard == "s0":
                raise LookupError("the client's own error")
            yield from super().read(shard)

    tally = SampleTally()
    reader = PairReader(Failing(SIX), tally)
    texts = [pair.text for shard in SIX for pair in reader.pairs(shard, "0")]
    assert len(set(texts)) == 25
    assert tally.failed == 1


def test_images_that_never_decode_end_the_run() -> None:
    class Broken(Listed):
        def read(self, shard: str) -> Iterator[Pair | BadSample]:
            yield Pair("bad", b"no image", "0/0")

    plan = plan_epoch(8, 4, 1, 0, 1, exact=True)
    preparation = Preparation(lambda image: image, torch.stack, tokens)
    dataset = TrainingBatches(Broken(SIX), plan, lambda: 0, preparation, SampleTally())
    (last,) = dataset
    assert isinstance(last, Stopped)
    assert "in a row cannot be decoded" in last.reason


def test_shards_that_give_nothing_end_the_run() -> None:
    with pytest.raises(UserError, match="had no usable pair"):
        visits(Listed({"a": [None], "b": []}), 1)


@given(st.lists(st.integers(), max_size=60), st.integers(1, 9), st.integers(1, 9))
def test_shuffling_keeps_every_item(items: list[int], size: int, initial: int) -> None:
    found = list(shuffled(iter(items), random.Random(0), size, initial))
    assert Counter(found) == Counter(items)


def tokens(texts: Sequence[str]) -> torch.Tensor:
    return torch.tensor([[int(part) for part in text.split("/")] for text in texts])


def batches(workers: int, epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from torch.utils.data import DataLoader
    from torchvision.transforms import Compose, RandomResizedCrop, ToTensor

    crops = Compose([RandomResizedCrop(8), ToTensor()])
    preparation = Preparation(crops, torch.stack, tokens)
    plan = plan_epoch(25, 4, 1, workers, 1, exact=True)
    dataset = TrainingBatches(Listed(SIX), plan, lambda: epoch, preparation, SampleTally())
    return list(DataLoader(dataset, batch_size=None, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_again_crops_and_order_too(workers: int) -> None:
    first, again, other = batches(workers), batches(workers), batches(workers, epoch=1)
    assert [len(images) for images, _ in first] == [4, 4, 4, 4, 4, 4, 1]
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip
    assert not torch.equal(first[0][0], other[0][0])


def test_an_image_that_cannot_be_decoded_costs_its_neighbours_nothing() -> None:
    class Broken(Listed):
        def read(self, shard: str) -> Iterator[Pair | BadSample]:
            yield Pair("bad", b"no image", "0/0")
            yield from super().read(shard)

    tally = SampleTally()
    plan = plan_epoch(8, 4, 1, 0, 1, exact=True)

    def pixels(image: Any) -> torch.Tensor:
        return torch.zeros(3, 2, 2)

    preparation = Preparation(pixels, torch.stack, tokens)
    dataset = TrainingBatches(Broken(SIX), plan, lambda: 0, preparation, tally)
    assert [len(images) for images, _ in dataset] == [4, 4]
    assert tally.ok == 8
    assert tally.failed > 0
