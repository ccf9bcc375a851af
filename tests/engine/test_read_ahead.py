"""Shards are read and prepared ahead of the model: in order, within bounds, and across shards."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from null_models import NullCaptioner, NullScorer
from PIL import Image
from samples import write_pool

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.caption.reuse import CaptionReuse
from capmix.engine.read_ahead import ReadAhead, read_ahead
from capmix.engine.stage import Stage
from capmix.models.image_pass import embed_stage
from capmix.pool import Sample
from capmix.score.stage import ImagePass, fresh_score_stage
from capmix.workspace import Workspace, open_workspace


def wait_for(happened: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < ends_at, "nothing happened within 10 s"
        time.sleep(0.001)


def readers() -> set[threading.Thread]:
    """Return the threads that read ahead, those of other tests included."""
    return {thread for thread in threading.enumerate() if thread.name == "capmix-read"}


class Shards:
    """Shards of `rows` numbers each; `read` are the (shard, number) pairs in reading order."""

    def __init__(self, rows: int, workers: int = 2, ahead: int = 12):
        self.rows, self.closed = rows, list[str]()
        self.read: list[tuple[str, int]] = []
        self.reader = ReadAhead(self.items, self.work, workers, ahead)

    def items(self, shard: str) -> Iterator[tuple[str, int]]:
        try:
            for number in range(self.rows):
                self.read.append((shard, number))
                if shard == "broken" and number == 5:
                    raise OSError("connection reset")
                yield shard, number
        finally:
            self.closed.append(shard)

    @staticmethod
    def work(item: tuple[str, int]) -> int:
        if item[1] == 3:
            raise ValueError("three")
        return 2 * item[1]

    def results(self, shard: str) -> list[tuple[str, int, int | None]]:
        return [(*item, found.value) for item, found in self.reader.of(shard)]

    def expected(self, shard: str) -> list[tuple[str, int, int | None]]:
        return [(shard, i, None if i == 3 else 2 * i) for i in range(self.rows)]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 3), (2, 192), (64, 192), (3, 60)])
def test_order_bounds_and_exceptions(workers: int, ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(500):
            taken += 1
            yield item

    def work(item: int) -> int:
        if item % 7 == 0:
            raise ValueError(f"{item}")
        return item * item

    for number, (item, found) in enumerate(read_ahead(items(), work, workers, ahead)):
        assert item == number
        assert taken - number <= ahead + 8
        if item % 7 == 0:
            with pytest.raises(ValueError, match=str(item)):
                found.result()
        else:
            assert found.result() == item * item
    assert taken == 500


def test_the_next_shard_is_begun_when_the_current_one_is_read_and_within_the_same_bound() -> None:
    shards = Shards(rows=20, ahead=12)
    shards.reader.follow("b")
    assert shards.read == []  # the first shard is read first
    found = shards.reader.of("a")
    next(found)
    wait_for(lambda: len(shards.read) == 13)
    assert {shard for shard, _ in shards.read} == {"a"}
    for _ in range(14):
        next(found)
    wait_for(lambda: len(shards.read) == 27)
    assert shards.read[20:] == [("b", number) for number in range(7)]
    assert len(list(found)) == 5
    shards.reader.follow(None)
    assert shards.results("b") == shards.expected("b")
    assert len(shards.read) == 40  # nothing was read twice


def test_a_chain_of_announced_shards_is_read_once() -> None:
    shards = Shards(rows=5, ahead=60)
    names = [f"{number}" for number in range(30)]
    for name, following in zip(names, [*names[1:], None], strict=True):
        shards.reader.follow(following)
        assert shards.results(name) == shards.expected(name)
    assert len(shards.read) == 150
    assert shards.closed == names


def test_another_shard_than_the_announced_one_is_read_anew() -> None:
    shards = Shards(rows=20)
    shards.reader.follow("b")
    assert shards.results("a") == shards.expected("a")
    wait_for(lambda: ("b", 0) in shards.read)
    shards.reader.follow(None)  # else it would be read again after "c"
    assert shards.results("c") == shards.expected("c")
    wait_for(lambda: "b" in shards.closed)
    assert sum(shard == "b" for shard, _ in shards.read) <= 13
    assert shards.results("b") == shards.expected("b")


def test_a_shard_that_may_not_follow_is_not_read_ahead() -> None:
    shards = Shards(rows=5)
    shards.reader = ReadAhead(
        shards.items, shards.work, 2, 12, may_follow=lambda shard: shard != "b"
    )
    shards.reader.follow("b")
    assert shards.results("a") == shards.expected("a")
    time.sleep(0.01)
    assert {shard for shard, _ in shards.read} == {"a"}
    assert shards.results("b") == shards.expected("b")


def test_shards_that_are_announced_and_never_asked_for_hold_nothing() -> None:
    shards = Shards(rows=20)
    shards.reader.follow("b")
    assert shards.results("a") == shards.expected("a")
    for name in ("c", "d", "e"):
        shards.reader.follow(name)
    wait_for(lambda: shards.closed == ["a", "b"])
    assert shards.results("f") == shards.expected("f")
    shards.reader.close()


def test_an_error_of_the_reader_comes_after_the_samples_before_it() -> None:
    shards = Shards(rows=20, workers=1, ahead=6)
    shards.reader.follow("broken")
    assert shards.results("a") == shards.expected("a")
    found = shards.reader.of("broken")
    got = []
    with pytest.raises(OSError, match="connection reset"):
        got += [item for item, _ in found]
    assert shards.results("a") == shards.expected("a")


def test_a_caller_that_stops_early_is_not_held_up_and_the_files_are_closed() -> None:
    shards = Shards(rows=1000)
    found = shards.reader.of("a")
    next(found)
    found.close()  # type: ignore[attr-defined]
    wait_for(lambda: shards.closed == ["a"])
    assert len(shards.read) <= 14
    release = threading.Event()
    slow = ReadAhead(lambda _: range(100), lambda item: item == 0 or release.wait(60), 2, 4)
    stream = slow.of("a")
    assert next(stream)[0] == 0
    stream.close()  # type: ignore[attr-defined]
    release.set()


def test_a_read_that_never_returns_does_not_hold_up_the_end() -> None:
    release = threading.Event()

    def items(_: str) -> Iterator[int]:
        yield 0
        release.wait(60)

    reader = ReadAhead(items, str, 1, 1)
    before = set(threading.enumerate())
    stream = reader.of("a")
    assert next(stream)[0] == 0
    reader.close()
    (thread,) = [one for one in {*threading.enumerate()} - before if one.name == "capmix-read"]
    assert thread.daemon
    release.set()
    thread.join(10)
    assert not thread.is_alive()


def test_every_thread_has_something_to_do() -> None:
    """There are as many concurrent requests as workers if a batch has one item per worker."""
    together = threading.Barrier(16)
    found = read_ahead(range(48), lambda _: together.wait(timeout=10), 16, 48)
    assert len([one.result() for _, one in found]) == 48


SHARDS, SAMPLES = 3, 20


class Waiting:
    """A model that answers the last batch of a shard when the next shard has been prepared."""

    def __init__(self) -> None:
        self.prepared = self.processed = 0

    def process(self, images: int) -> None:
        self.processed += images
        if self.processed % SAMPLES == 0 and self.processed < SHARDS * SAMPLES:
            wait_for(lambda: self.prepared == self.processed + SAMPLES)


class WaitingCaptioner(Waiting, NullCaptioner):
    def __init__(self) -> None:
        Waiting.__init__(self)
        NullCaptioner.__init__(self)

    def prepare(self, sample: Sample) -> str:
        self.prepared += 1
        return super().prepare(sample)

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        self.process(len(uids))
        return super().caption(prepared, uids, source)


class WaitingScorer(Waiting, NullScorer):
    workers = 1

    def prepare(self, image: Image.Image) -> np.ndarray:
        self.prepared += 1
        return super().prepare(image)

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        self.process(len(pixels))
        return super().encode_pixels(pixels)


def captioning(work: Workspace) -> list[Stage]:
    model = WaitingCaptioner()
    model.workers = 1
    return [image_caption_stage(work.pool, model, "null", store=work.store)]


def scoring(work: Workspace) -> list[Stage]:
    scorer = WaitingScorer()
    return [fresh_score_stage(work.store, scorer, "raw", ImagePass(work.pool, scorer))]


def embedding(work: Workspace) -> list[Stage]:
    return [embed_stage(work.pool, WaitingScorer())]


@pytest.mark.parametrize("stages", [captioning, scoring, embedding])
def test_the_next_shard_is_prepared_while_the_model_works_on_the_last_batch(
    tmp_path: Path, stages: Callable[[Workspace], list[Stage]]
) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", SHARDS, SAMPLES)), str(tmp_path / "w"))
    work.index()
    before = readers()
    (counts,) = work.run(lambda: stages(work))
    assert counts.ok == SHARDS * SAMPLES
    assert readers() <= before


class Interrupted(NullCaptioner):
    """Interrupts the run in the second shard, like Ctrl-C; each image of the third takes 5 s."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self.begun = 0

    def prepare(self, sample: Sample) -> str:
        if sample.key >= "00002":
            self.begun += 1
            self.release.wait(5)
        return super().prepare(sample)

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        if uids[-1] == f"{100 + SAMPLES - 1:032x}":
            wait_for(lambda: self.begun == 2)
            raise KeyboardInterrupt
        return super().caption(prepared, uids, source)


def test_an_interrupted_run_does_not_wait_for_what_is_read_ahead(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", SHARDS, SAMPLES)), str(tmp_path / "w"))
    model, before = Interrupted(), readers()
    with pytest.raises(KeyboardInterrupt):
        work.run(lambda: [image_caption_stage(work.pool, model, "null", store=work.store)])
    assert work.store.parts("captions/null") == ["captions/null/00000"]
    wait_for(lambda: readers() <= before)
    model.release.set()
    time.sleep(0.05)
    assert model.begun <= 8  # what waited for a thread was cancelled


def test_only_shards_without_a_part_are_read_ahead(tmp_path: Path) -> None:
    """Of other shards, some samples may be kept."""
    pool = str(write_pool(tmp_path / "pool", SHARDS, SAMPLES))
    work = open_workspace(pool, str(tmp_path / "w"))
    work.run(lambda: [image_caption_stage(work.pool, NullCaptioner(), "null", store=work.store)])
    model = NullCaptioner()
    stage = image_caption_stage(work.pool, model, "null", store=work.store)
    assert isinstance(stage.reuse, CaptionReuse)
    assert not any(stage.reuse.needs_all(shard) for shard in work.pool.shards)
    other = image_caption_stage(work.pool, model, "other", store=work.store)
    assert isinstance(other.reuse, CaptionReuse)
    assert all(other.reuse.needs_all(shard) for shard in work.pool.shards)
