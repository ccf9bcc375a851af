"""Batches that run out of memory: the size shrinks, grows again, and every item has one result."""

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.engine.batches import FIRST_RETRY, Batches, BrokenDeviceError, SampleError

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("Allocation on device 0"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.97 GB)"),
    RuntimeError("XPU out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
)


class Device:
    """Doubles integers, up to `room` of them at once; `sizes` records the calls."""

    def __init__(self, room: int, error: Exception = OUT_OF_MEMORY[0]):
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise self.error
        return [2 * item for item in items]

    @property
    def failed(self) -> int:
        return sum(size > self.room for size in self.sizes)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_form_of_running_out_of_memory_shrinks_the_batch(error: Exception) -> None:
    device, batches = Device(4, error), Batches()
    assert batches.run(device, range(16)) == list(range(0, 32, 2))
    assert device.sizes == [16, 8, 4, 4, 4, 4]
    device.room = 0
    (lone,) = batches.run(device, [1])
    assert isinstance(lone, SampleError)
    assert lone.reason == "out_of_memory"


def test_running_out_of_memory_is_not_a_broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error may be reported again by the call that checks the device."""
    error = OUT_OF_MEMORY[4]

    def refuse() -> None:
        raise error

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", refuse)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    assert Batches().run(Device(4, error), range(8)) == list(range(0, 16, 2))
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(BrokenDeviceError, match="illegal memory access"):
        Batches().run(Device(4, error), range(8))


def test_the_size_grows_again_when_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    device, batches = Device(20), Batches()
    with caplog.at_level(logging.DEBUG):
        batches.run(device, range(75))
        assert device.sizes[:4] == [75, 37, 18, 18]
        device.room, device.sizes = 10_000, []
        for _ in range(3 * FIRST_RETRY):
            batches.run(device, range(75))
    assert device.sizes[-1] == 75
    assert sorted(set(device.sizes)) == [1, 3, 18, 37, 75]
    assert device.sizes.count(18) < FIRST_RETRY + 4
    told = [record.levelname for record in caplog.records if "batch size" in record.message]
    assert told == ["WARNING", "WARNING"]
    assert caplog.text.count("limit raised to") == 3


def test_a_fixed_limit_costs_few_failed_calls(caplog: pytest.LogCaptureFixture) -> None:
    device, batches = Device(200), Batches()
    for number in range(2500):
        assert batches.run(device, range(256))[-1] == 510, number
    assert len(device.sizes) == 5000 + device.failed
    assert device.failed == 3  # the first batch, after 64 good batches and after 1,024 more
    assert caplog.text.count("out of memory") == 1


def test_one_item_that_never_fits_does_not_shrink_later_batches() -> None:
    device, batches = Device(64), Batches()

    def model(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise MemoryError
        return device(items)

    found = batches.run(model, range(64))
    assert [place for place, one in enumerate(found) if isinstance(one, SampleError)] == [13]
    batches.run(device, range(64))
    assert device.sizes[-1] == 64


def test_a_large_batch_runs_item_by_item_without_deep_recursion() -> None:
    device = Device(1)
    assert Batches().run(device, range(3000)) == list(range(0, 6000, 2))


@settings(max_examples=25, deadline=None)
@given(
    rooms=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 80)), min_size=1, max_size=6),
    size=st.integers(1, 100),
)
def test_every_item_has_one_result_while_the_room_changes(
    rooms: list[tuple[int, int]], size: int
) -> None:
    """`rooms` are pairs of a memory limit and the number of batches during which it holds."""
    device, batches, begun = Device(0), Batches(), 0
    for room, count in rooms:
        device.room, device.sizes = room, []
        for _ in range(count):
            items = range(begun, begun + size)
            assert batches.run(device, items) == [2 * item for item in items]
            begun += size
        good = len(device.sizes) - device.failed
        halvings = size.bit_length()
        assert device.failed <= 2 * halvings + good / FIRST_RETRY


@pytest.mark.parametrize("make", [lambda: iter([3]), lambda: (3,), lambda: [3]])
def test_results_may_be_any_iterable(make: Callable[[], Sequence[int]]) -> None:
    assert Batches().run(lambda _: make(), [1]) == [3]
