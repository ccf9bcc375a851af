"""The device and dtype that `auto` stands for."""

from types import SimpleNamespace

import pytest
import torch

from capmix.models.device import device_and_dtype

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
