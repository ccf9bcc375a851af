"""What `auto` stands for, and the threads that prepare images: they share the cores, and use torch
without further threads."""

import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capmix.engine.local import Processes
from capmix.engine.prefetch import LOCAL_WORKERS
from capmix.models.device import alone_on_its_core, device_and_dtype, preparing_threads

T4, V100, A100 = (7, 5), (7, 0), (8, 0)


def with_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """Let torch see GPUs of these compute capabilities. All of them can emulate bfloat16."""
    current = [0]

    class OnDevice:
        def __init__(self, device: str):
            self.index = torch.device(device).index or 0

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    def properties(device: int) -> SimpleNamespace:
        return SimpleNamespace(major=capabilities[device][0], minor=capabilities[device][1])

    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(capabilities))
    monkeypatch.setattr("torch.cuda.device", OnDevice)
    monkeypatch.setattr("torch.cuda.current_device", lambda: current[-1])
    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    monkeypatch.setattr("torch.cuda._check_bf16_tensor_supported", lambda _: True)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(T4, torch.float16), (V100, torch.float16), (A100, torch.bfloat16)],
)
def test_a_gpu_that_only_emulates_bfloat16_gets_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    with_gpus(monkeypatch, capability)
    assert device_and_dtype("auto", "auto") == ("cuda", dtype)
    assert device_and_dtype("cuda", "bfloat16") == ("cuda", torch.bfloat16)


def test_the_dtype_is_that_of_the_chosen_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, A100, T4)
    assert device_and_dtype("cuda:1", "auto") == ("cuda:1", torch.float16)
    assert device_and_dtype("cuda:0", "auto") == ("cuda:0", torch.bfloat16)


def test_a_gpu_that_does_not_exist_is_left_for_the_model_to_report() -> None:
    assert device_and_dtype("cuda:99", "auto") == ("cuda:99", torch.float16)


def test_a_cpu_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    assert device_and_dtype("auto", "auto") == ("cpu", torch.float32)


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


def test_workers_that_cannot_be_pinned_know_how_many_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job: Any = None
    with_gpus = Processes(job, 2, ["4", "7"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert with_gpus._environment(1) == {"CUDA_VISIBLE_DEVICES": "7"}  # their share: their affinity
    assert with_gpus._cores(1) == [1, 3, 5, 7]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert with_gpus._environment(1) == {LOCAL_WORKERS: "2", "CUDA_VISIBLE_DEVICES": "7"}


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
