import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from capmix.engine.memory import WeightedSemaphore


@pytest.mark.parametrize(("units", "at_once"), [(1, 6), (3, 2), (6, 1), (100, 1), (0, 12)])
def test_threads_hold_no_more_than_the_capacity_together(units: int, at_once: int) -> None:
    semaphore, lock, held, most = WeightedSemaphore(6), threading.Lock(), [0], [0]
    gather = threading.Barrier(at_once)

    def work(_: int) -> None:
        with semaphore.held(units):
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            gather.wait(10)
            with lock:
                held[0] -= 1
            gather.wait(10)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert most == [at_once]


def test_an_error_gives_back_what_was_held() -> None:
    semaphore = WeightedSemaphore(1)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"), semaphore.held(1):
            raise ValueError("broken")
