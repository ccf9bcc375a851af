import copy
from pathlib import Path

import pytest
import torch
from samples import image_bytes, write_pool
from tiny_models import blip, llava, plain_model

from capmix.caption.backends.blip_vision import run_blip_in_openvino, speed_up_blip
from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.pool import Sample
from capmix.workspace import open_workspace

SAMPLES = [Sample(f"u{i}", f"u{i}", image_bytes(i), "jpg", None) for i in range(6)]


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


def test_in_openvino_the_captions_are_the_same(tmp_path: Path) -> None:
    folder = str(blip(tmp_path / "blip"))
    found = {}
    for runtime in ("torch", "openvino"):
        settings = CaptionSettings(
            model=folder, runtime=runtime, device="cpu", max_tokens=8, captions_per_image=2
        )
        one = TransformersCaptioner(settings)
        prepared = [one.prepare(sample) for sample in SAMPLES]
        found[runtime] = one.caption(prepared, [sample.uid for sample in SAMPLES], "s")
        assert one.settings["runtime"] == runtime
        assert ("openvino" in one.provenance["versions"]) == (runtime == "openvino")
    assert found["openvino"] == found["torch"]
    assert len({captions[0].text for captions in found["torch"]}) > 3


def test_the_states_in_openvino_are_close_in_bfloat16(tmp_path: Path) -> None:
    folder = blip(tmp_path / "blip")
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain_model(folder).vision_model(pixel_values=pixels)[0]
        plain = plain_model(folder).to(torch.bfloat16)
        run_blip_in_openvino(plain, "captioner")
        found = plain.vision_model(pixel_values=pixels.to(torch.bfloat16))[0]
    assert found.dtype == torch.bfloat16
    assert plain.vision_model.tower.settings["dtype"] == "bfloat16"
    assert torch.nn.functional.cosine_similarity(found.float(), expected, -1).min() > 0.999


def test_runtimes_are_not_mixed_in_a_source(tmp_path: Path) -> None:
    model = str(blip(tmp_path / "blip"))
    work = open_workspace(str(write_pool(tmp_path / "p")), str(tmp_path / "w"))
    work.caption("b", model=model, max_tokens=6)
    changed = r"different settings \(runtime 'torch' -> 'openvino'\)"
    with pytest.raises(UserError, match=changed):
        work.caption("b", model=model, max_tokens=6, runtime="openvino")


def test_another_architecture_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = llava(tmp_path / "llava")
    (folder / "model.safetensors").unlink()
    settings = CaptionSettings(model=str(folder), runtime="openvino")
    with pytest.raises(UserError, match="supports only blip models, and this is a llava model"):
        TransformersCaptioner(settings)
