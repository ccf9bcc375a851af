"""The remaining time is estimated from rows and their cost, for parts of any kind."""

from collections import Counter
from collections.abc import Callable

import pytest

from capmix.engine.estimate import JobProgress, Sized, StageProgress
from capmix.engine.seen import Seen
from capmix.engine.stage import PartOutcome
from capmix.engine.worker import MADE, Reply, ShardTask
from capmix.pool import Shard
from capmix.storage.marker import Counts


def stage(
    sizes: dict[str, int | None],
    before: Sized | None = None,
    weights: dict[str, int] | None = None,
    name: str = "caption x",
) -> StageProgress:
    return StageProgress(
        name, "image", sizes, weights or dict.fromkeys(sizes, 1), before or Sized()
    )


def job(
    *stages: StageProgress, active: int = 1, clock: Callable[[], float] = lambda: 0.0
) -> JobProgress:
    return JobProgress(dict(enumerate(stages)), lambda: active, clock)


def seen(shard: str, rows: int, seconds: float, is_first: bool = False, failed: int = 0) -> Seen:
    return Seen(shard, 0, rows, rows - failed, 0, failed, seconds, is_first)


def made(shard: str, ok: int, seconds: float, failed: int = 0, stages: int = 1) -> Reply:
    counts = Counts(ok, Counter(), Counter(broken_image=failed))
    task = ShardTask(Shard(shard, ""), tuple(range(stages)), "")
    outcomes = {number: PartOutcome(counts, seconds=seconds) for number in range(stages)}
    return Reply(task, MADE, outcomes)


def test_one_shard_counts_its_images() -> None:
    run = job(stage({"a": 10_000}))
    run.add(seen("a", 0, 0.0, is_first=True))
    assert (run.view().done, run.view().total, run.view().eta) == (0, 10_000, None)
    run.add(seen("a", 100, 61.0, is_first=True))
    run.add(seen("a", 2_100, 81.0))
    view = run.view()
    assert (view.done, view.total, view.is_about) == (2_100, 10_000, False)
    assert view.rate == pytest.approx(100)  # excludes the minute of loading and compilation
    assert view.eta == pytest.approx(79)
    assert view.line() == ("caption x: 2,100 of 10,000 images (21%), 100 images/s, 1 min 19 s left")


def test_images_of_an_interrupted_run_count_as_done_and_not_for_the_rate() -> None:
    run = job(stage({"a": 10_000}))
    run.add(seen("a", 0, 0.0))
    run.add(Seen("a", 0, 5_000, 5_000, seconds=1.0, resumed=5_000))
    assert (run.view().done, run.view().rate) == (5_000, None)
    run.add(Seen("a", 0, 6_000, 6_000, seconds=11.0, resumed=5_000))
    assert run.view().line() == ("caption x: 6,000 of 10,000 images (60%), 91 images/s, 44 s left")
    run.end(Reply(
        ShardTask(Shard("a", ""), (0,), ""), MADE,
        {0: PartOutcome(Counts(10_000), seconds=51.0, resumed=5_000)},
    ))  # fmt: skip
    assert run.view().rate == pytest.approx(5_000 / 51, rel=0.01)


def test_the_first_report_gives_no_estimate() -> None:
    run = job(stage({"a": 10_000}))
    run.add(seen("a", 32, 30.0, is_first=True))
    assert (run.view().done, run.view().rate, run.view().eta) == (32, None, None)


def test_remaining_time_decreases_between_reports() -> None:
    now = 100.0
    run = job(stage({"a": 100, "b": 100, "c": 100}), clock=lambda: now)
    run.end(made("a", 100, 30.0))
    run.add(seen("b", 0, 0.0))
    run.end(made("b", 100, 10.0))
    run.add(seen("c", 0, 0.0))
    assert run.view().eta == pytest.approx(10.0)
    now += 4
    assert run.view().eta == pytest.approx(6.0)
    now += 40
    assert (run.view().eta, run.view().done) == (0.0, 200)


def test_parts_that_were_done_before_change_no_rate() -> None:
    run = job(stage({"b": 1000}, Sized(9000, 9)))
    run.add(seen("b", 10, 2.0, is_first=True))
    run.add(seen("b", 110, 12.0))
    view = run.view()
    assert (view.done, view.total) == (9110, 10_000)
    assert view.eta == pytest.approx(89)


def test_shards_that_cannot_be_read_change_no_rate() -> None:
    run = job(stage({"a": 1000, "b": 1000, "c": 1000}))
    run.end(made("a", 0, 0.01, failed=1))
    assert (run.view().eta, run.view().total) == (None, 2001)
    run.add(seen("b", 10, 2.0, is_first=True))
    run.add(seen("b", 110, 12.0))
    assert run.view().eta == pytest.approx(189)


def test_rows_that_fail_are_cheap() -> None:
    run = job(stage({"a": 1000}))
    run.add(seen("a", 10, 2.0, is_first=True))
    run.add(seen("a", 500, 2.1, failed=490))
    run.add(seen("a", 600, 12.1, failed=490))
    assert run.view().rate == pytest.approx(100 / 10.1)


def test_small_shards_do_not_count_as_large_ones() -> None:
    run = job(stage({"small": 10, "large": 10_000}))
    run.add(seen("small", 5, 3.0, is_first=True))
    run.end(made("small", 10, 3.5))
    assert run.view().eta == pytest.approx(1000)
    assert f"{run.view().done / 10_010:.1%}" == "0.1%"


def test_two_workers_need_half_the_time_but_one_at_the_last_shard() -> None:
    run = job(stage({"a": 100, "b": 100, "c": 100}), active=2)
    run.add(seen("a", 10, 5.0, is_first=True))
    run.add(seen("b", 10, 5.0, is_first=True))
    run.add(seen("a", 60, 10.0))
    assert run.view().rate == pytest.approx(20)
    assert run.view().eta == pytest.approx((300 - 70) / 10 / 2)
    run.end(made("a", 100, 14.0))
    run.end(made("b", 100, 14.0))
    assert run.view().eta == pytest.approx(10.0)


def test_a_total_that_nobody_knows_is_estimated_from_bytes() -> None:
    run = job(stage({"a": None, "b": None}, weights={"a": 1000, "b": 9000}))
    assert run.view().total is None
    run.end(made("a", 50, 1.0))
    view = run.view()
    assert (view.done, view.total, view.is_about) == (50, 500, True)
    assert view.line() == ("caption x: 50 of about 500 images (10%), 50 images/s, about 9.0 s left")


def test_stages_of_one_shard_share_its_time() -> None:
    run = job(stage({"a": 100}, name="embed"), stage({"a": 100}, name="caption"))
    run.add(Seen("a", 0, 1, 1, seconds=1.0, is_first=True))
    run.add(Seen("a", 0, 51, 51, seconds=51.0))
    assert (run.view().done, run.view().stage, run.view().is_about) == (26, "embed", True)
    run.add(Seen("a", 0, 100, 100, seconds=100.0))
    run.add(Seen("a", 1, 10, 10, seconds=2.0, is_first=True))
    run.add(Seen("a", 1, 60, 60, seconds=7.0))
    view = run.view()
    assert (view.stage, view.done, view.is_about) == ("caption", 96, False)
    assert view.eta == pytest.approx(4.0)
    assert [(one.stage, one.done, one.total) for one in run.views()] == [
        ("embed", 100, 100), ("caption", 60, 100),
    ]  # fmt: skip


def test_a_part_that_is_begun_again_is_counted_once() -> None:
    run = job(stage({"a": 100}))
    run.add(seen("a", 50, 5.0, is_first=True))
    run.end(Reply(ShardTask(Shard("a", ""), (0,), ""), "failed"))
    assert run.view().done == 0
    run.add(seen("a", 10, 1.0))
    run.end(made("a", 100, 10.0))
    assert (run.view().done, run.view().total, run.view().ok) == (100, 100, 100)


def test_a_part_that_another_run_has_made_is_there() -> None:
    run = job(stage({"a": 100, "b": 100}))
    run.end(made("a", 0, 0.0))
    assert (run.view().done, run.view().total) == (100, 200)
