"""Threads that prepare images share the cores, and use torch without further threads."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from capmix.engine.local import Processes
from capmix.engine.prefetch import LOCAL_WORKERS
from capmix.models.device import alone_on_its_core, preparing_threads


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [(1, 1, 2), (2, 1, 2), (12, 1, 12), (64, 1, 16), (64, 8, 8), (64, 2, 16), (8, 8, 2)],
)
def test_workers_of_a_machine_share_its_cores(
    cores: int, workers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 999)
    monkeypatch.delenv(LOCAL_WORKERS, raising=False)
    if workers > 1:
        monkeypatch.setenv(LOCAL_WORKERS, str(workers))
    assert preparing_threads() == expected


def test_workers_with_gpus_know_how_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    job: Any = None
    with_gpus = Processes(job, 2, ["4", "7"])
    assert with_gpus._environment(1) == {LOCAL_WORKERS: "2", "CUDA_VISIBLE_DEVICES": "7"}
    pinned = Processes(job, 2, [])  # their share is their affinity
    assert (pinned._cores(1), pinned._environment(1)) == ([1, 3, 5, 7], {})


@pytest.fixture
def three_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(usual)


def in_thread(work: Callable[[], int]) -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_only_preparing_threads_run_torch_alone(three_threads: None) -> None:
    start = alone_on_its_core()

    def prepare() -> int:
        start()
        return torch.get_num_threads()

    assert [in_thread(prepare) for _ in range(2)] == [1, 1]
    assert torch.get_num_threads() == 3
    assert in_thread(torch.get_num_threads) == 3
