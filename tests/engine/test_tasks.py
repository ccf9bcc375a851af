"""Which worker gets which task: each task is taken once, and reservations are only hints."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.engine.tasks import TaskQueue
from capmix.engine.worker import ShardTask
from capmix.pool import Shard


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask(Shard(f"{number}", ""), (0,), "") for number in range(count)]


def name(task: ShardTask | None) -> str | None:
    return None if task is None else task.shard.name


def test_a_single_worker_gets_the_tasks_in_order_and_knows_the_next_one() -> None:
    queue = TaskQueue(tasks(3), 1, set())
    found = [(name(queue.take(0)), name(queue.reserve(0))) for _ in range(3)]
    assert found == [("0", "1"), ("1", "2"), ("2", None)]
    assert not queue


def test_a_worker_gets_its_reserved_task_and_others_only_if_nothing_else_is_left() -> None:
    queue = TaskQueue(tasks(6), 2, set())
    assert [name(queue.take(0)), name(queue.take(1))] == ["0", "1"]
    assert [name(queue.reserve(0)), name(queue.reserve(1))] == ["2", "3"]
    assert name(queue.take(1)) == "3"
    assert name(queue.reserve(1)) == "4"
    assert [name(queue.take(1)), name(queue.take(1)), name(queue.take(1))] == ["4", "5", "2"]
    with pytest.raises(KeyError):
        queue.take(0)


def test_the_last_tasks_are_not_reserved() -> None:
    """The worker that is ready first gets them."""
    queue = TaskQueue(tasks(5), 4, set())
    for worker in range(4):
        queue.take(worker)
    assert queue.reserve(0) is None


def test_a_shard_that_was_read_ahead_by_a_worker_that_died_is_not_read_ahead_again() -> None:
    suspects: set[str] = set()
    queue = TaskQueue(tasks(4), 1, suspects)
    first = queue.take(0)
    queue.reserve(0)
    also = queue.died(0, first)
    assert also == ", perhaps because of shard 1, which it read ahead"
    assert suspects == {"0", "1"}
    assert [(name(queue.take(0)), name(queue.reserve(0))) for _ in range(3)] == [
        ("3", "2"), ("2", None), ("1", None),
    ]  # fmt: skip
    again = TaskQueue(tasks(3), 1, suspects)
    assert [(name(again.take(0)), name(again.reserve(0))) for _ in range(3)] == [
        ("2", None), ("0", None), ("1", None),
    ]  # fmt: skip
    assert again.died(0, first) == ""


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 12),
    workers=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["take", "reserve", "die"]), st.integers(0, 3))),
)
def test_every_task_is_taken_once(count: int, workers: int, steps: list[tuple[str, int]]) -> None:
    all_tasks = tasks(count)
    queue, taken = TaskQueue(all_tasks, workers, set()), list[ShardTask]()
    for step, number in steps:
        worker = number % workers
        if step == "take" and queue:
            taken.append(queue.take(worker))
        elif step == "reserve":
            queue.reserve(worker)
        elif step == "die" and taken:
            queue.died(worker, taken[-1])
        assert len(queue) == count - len(taken)
    while queue:
        taken.append(queue.take(0))
    assert sorted(one.shard.name for one in taken) == sorted(one.shard.name for one in all_tasks)
