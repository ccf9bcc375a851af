import copy
from pathlib import Path

import torch
from tiny_models import blip, llava, plain_model

from capmix.caption.backends.blip_vision import speed_up_blip


def test_the_vision_tower_gives_the_same_states(tmp_path: Path) -> None:
    plain = plain_model(blip(tmp_path / "blip"))
    fused = copy.deepcopy(plain)
    speed_up_blip(fused)
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (m.vision_model(pixel_values=pixels)[0] for m in (plain, fused))
    assert first.std() > 0.1
    assert (first - second).abs().max() < 1e-5


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    model = plain_model(llava(tmp_path / "llava"))
    speed_up_blip(model)
    assert not any("forward" in vars(module) for module in model.modules())
