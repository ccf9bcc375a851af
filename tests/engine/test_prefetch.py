"""Work ahead of the model: in order, within bounds, and exceptions stay with their items."""

import threading
from collections.abc import Iterator

import pytest

from capmix.engine.prefetch import prefetched


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

    for number, (item, found) in enumerate(prefetched(items(), work, workers, ahead)):
        assert item == number
        assert taken - number <= ahead + 8
        if item % 7 == 0:
            with pytest.raises(ValueError, match=str(item)):
                found.result()
        else:
            assert found.result() == item * item
    assert taken == 500


def test_every_thread_has_something_to_do() -> None:
    """There are as many concurrent requests as workers if a batch has one item per worker."""
    together = threading.Barrier(16)
    found = prefetched(range(48), lambda _: together.wait(timeout=10), 16, 48)
    assert len([one.result() for _, one in found]) == 48


def test_whoever_stops_early_is_not_held_up() -> None:
    release = threading.Event()
    stream = prefetched(range(100), lambda item: item == 0 or release.wait(60), 2, 4)
    assert next(stream)[0] == 0
    stream.close()  # type: ignore[attr-defined]
    release.set()
