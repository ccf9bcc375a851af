"""Training on a CPU: layout, attention, and checkpoints in the usual layout."""

from collections.abc import Iterator

import pytest
import torch

from capmix.training.cpu import suit_to_cpu


@pytest.fixture
def fused_attention() -> Iterator[None]:
    yield
    torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.usefixtures("fused_attention")
@pytest.mark.parametrize(("precision", "is_fused"), [("fp32", True), ("amp_bf16", False)])
def test_a_model_on_a_cpu_has_its_layout_and_its_attention(precision: str, is_fused: bool) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(4)
    )
    image = torch.rand(2, 3, 9, 9)
    before = model(image)
    suit_to_cpu(model, precision)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[0].weight.is_contiguous()
    assert all(weight.is_contiguous() for weight in model.state_dict().values())
    assert torch.allclose(model(image), before, atol=1e-6)
    assert torch.backends.cuda.flash_sdp_enabled() is is_fused
