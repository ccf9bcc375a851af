"""Training on a CPU: layout, attention, and checkpoints in the usual layout."""

import json
from collections.abc import Iterator
from typing import Any

import open_clip
import pytest
import torch

from capmix.training.cpu import longest_sequence, suit_to_cpu
from capmix.training.hooks import _create_model
from capmix.training.scales import TrainSettings

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 600, "width": 32, "heads": 2, "layers": 1}


@pytest.fixture(autouse=True)
def fused_attention() -> Iterator[None]:
    yield
    torch.backends.cuda.enable_flash_sdp(True)


@pytest.fixture(scope="module")
def name(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "cpu-nano.json"
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT}))
    open_clip.add_model_config(path)
    return path.stem


def made_for(name: str, device: str, precision: str = "fp32") -> Any:
    make = _create_model(open_clip.create_model_and_transforms, TrainSettings(), "title")
    return make(name, device=device, precision=precision)[0]


def test_a_run_on_a_cpu_has_its_layout_and_saves_the_usual_one(name: str) -> None:
    model = made_for(name, "cpu")
    weight = model.visual.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert all(saved.is_contiguous() for saved in model.state_dict().values())
    plain = open_clip.create_model(name).eval()
    plain.load_state_dict(model.state_dict())
    image = torch.rand(2, 3, 32, 32)
    assert torch.allclose(model.eval().encode_image(image), plain.encode_image(image), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "is_fused"),
    [("fp32", True), ("amp_bf16", False), ("amp_bfloat16", False), ("amp", True)],
)
def test_short_sequences_in_bfloat16_have_plain_attention(
    name: str, precision: str, is_fused: bool
) -> None:
    made_for(name, "cpu", precision)
    assert torch.backends.cuda.flash_sdp_enabled() is is_fused


def test_long_sequences_keep_fused_attention(name: str) -> None:
    model = open_clip.create_model(name)
    assert longest_sequence(model) == 24
    model.visual.grid_size = (14, 14)
    assert longest_sequence(model) == 197
    suit_to_cpu(model, "amp_bf16")
    assert torch.backends.cuda.flash_sdp_enabled()
