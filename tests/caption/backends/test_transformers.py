"""Real architectures with random weights; compared with transformers' `generate`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import image_bytes
from tiny_models import BUILDERS, blip, blip2, plain_model, qwen3_vl

from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import Batches
from capmix.errors import UserError
from capmix.pool import Sample

UIDS = [f"u{i}" for i in range(9)]
SAMPLES = [Sample(u, u, image_bytes(i, (40 + 9 * i, 30)), "jpg", None) for i, u in enumerate(UIDS)]


@pytest.fixture(scope="module", params=list(BUILDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


def captioner(folder: Path, **settings: Any) -> TransformersCaptioner:
    return TransformersCaptioner(CaptionSettings(model=str(folder), **settings))


def test_a_device_that_is_not_there_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--device|cuda:9"):
        captioner(folder, device="cuda:9")


def texts(one: TransformersCaptioner, order: list[int], batch: int) -> dict[str, list[str]]:
    found = {}
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        prepared = [one.prepare(SAMPLES[row]) for row in rows]
        uids = [UIDS[row] for row in rows]
        for uid, captions in zip(uids, one.caption(prepared, uids, "s"), strict=True):
            found[uid] = [caption.text for caption in captions]
    return found


def test_greedy_equals_generate_token_for_token(folder: Path) -> None:
    one = captioner(folder, temperature=0, min_tokens=0, max_tokens=12)
    plain = plain_model(folder)
    for sample in SAMPLES[:4]:
        prepared = one.prepare(sample)
        inputs = one._collate([prepared])
        tokens = plain.generate(**inputs, do_sample=False, min_new_tokens=0, max_new_tokens=12)
        (caption,) = one.caption([prepared], [sample.uid], "s")[0]
        own = one.tokenizer.decode(_new_tokens(tokens[0], inputs), skip_special_tokens=True)
        assert caption.text == own.strip()


def test_inputs_are_those_of_the_models_own_processor(folder: Path) -> None:
    """Whether images are prepared as uint8 or by the processor; the prompt is tokenized once."""
    one, exact = captioner(folder), captioner(folder, exact_decode=True)
    inputs = [one._collate([one.prepare(sample)]) for sample in SAMPLES[:2]]
    expected = [exact._collate([exact.prepare(sample)]) for sample in SAMPLES[:2]]
    for found, own in zip(inputs, expected, strict=True):
        assert found.keys() == own.keys()
        assert all(torch.equal(found[name], own[name]) for name in own)
    kinds = {"qwen2_vl": "reduced", "smolvlm": "reduced"}
    made = kinds.get(one.model.config.model_type, "fast")
    assert (one.provenance["pixels"], exact.provenance["pixels"]) == (made, "exact")
    assert one.settings == exact.settings
    if made == "fast":
        one._processed = one.processor = None  # type: ignore[assignment, method-assign]
        assert one.prepare(SAMPLES[0])["pixel_values"].dtype == torch.uint8


def test_qwen3_vl_whose_tower_returns_features_of_several_layers(tmp_path: Path) -> None:
    folder = qwen3_vl(tmp_path / "qwen3_vl")
    one = captioner(folder, temperature=0, min_tokens=0, max_tokens=4, captions_per_image=2)
    inputs = one.prepare(SAMPLES[1])
    first, again = one.caption([inputs], [UIDS[1]], "s")[0]
    tokens = plain_model(folder).generate(**inputs, do_sample=False, max_new_tokens=4)
    own = one.tokenizer.decode(_new_tokens(tokens[0], inputs), skip_special_tokens=True)
    assert first.text == again.text == own.strip()
    assert one.prompt == "Describe this image in one sentence."


def _new_tokens(tokens: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Without a prompt, BLIP answers with its start token first."""
    prompt = inputs.get("input_ids")
    return tokens[1 if prompt is None else prompt.shape[1] :]


def test_captions_depend_on_no_batch_and_no_order(folder: Path) -> None:
    one = captioner(folder, captions_per_image=2, max_tokens=10)
    alone = texts(one, list(range(9)), 1)
    assert texts(one, list(range(9)), 7) == alone
    assert texts(one, [4, 2, 8, 0, 1, 3, 7, 6, 5], 4) == alone
    assert len({captions[0] for captions in alone.values()}) > 4
    assert any(first != second for first, second in alone.values())


def test_a_further_caption_is_the_one_that_all_at_once_would_give(folder: Path) -> None:
    one = captioner(folder, captions_per_image=3, max_tokens=6)
    prepared, uids = [one.prepare(sample) for sample in SAMPLES[:3]], ["a", "b", "c"]
    whole = one.caption(prepared, uids, "s")
    assert one.caption(prepared, uids, "s", first=2) == [captions[2:] for captions in whole]


def test_several_captions_of_one_image_see_the_vision_tower_once(folder: Path) -> None:
    one = captioner(folder, captions_per_image=3, max_tokens=6)
    tower = next(
        module
        for name, module in one.model.named_modules()
        if name.rpartition(".")[2] in ("vision_model", "vision_tower", "visual", "image_encoder")
    )
    seen = []
    layer = next(
        module
        for module in tower.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d)
    )
    layer.register_forward_hook(lambda *_: seen.append(1))
    same_shape = [Sample(u, u, image_bytes(i), "jpg", None) for i, u in enumerate(UIDS[:4])]
    one.caption([one.prepare(sample) for sample in same_shape], UIDS[:4], "s")
    assert len(seen) == 1


def test_lengths_are_kept(folder: Path) -> None:
    one = captioner(folder, min_tokens=5, max_tokens=8, top_k=3)
    drawn = one.caption([one.prepare(sample) for sample in SAMPLES], UIDS, "s")
    assert {caption.finish for captions in drawn for caption in captions} <= {"stop", "length"}
    short = captioner(folder, min_tokens=0, max_tokens=1)
    (caption,) = short.caption([short.prepare(SAMPLES[0])], ["u"], "s")[0]
    assert len(caption.text.split()) <= 1


def test_settings_name_everything_that_decides_the_captions(folder: Path) -> None:
    settings = captioner(folder, seed=3).settings
    expected = {"top_k": 50, "temperature": 0.75, "min_tokens": 5, "max_tokens": 40, "seed": 3}
    assert expected.items() <= settings.items()
    assert settings["dtype"] == "float32"
    assert len(settings["weights"]) == 16


def test_a_one_pixel_image_is_captioned(folder: Path) -> None:
    one = captioner(folder, max_tokens=6)
    sample = Sample("p", "p", image_bytes(0, (1, 1), "PNG"), "png", None)
    assert len(one.caption([one.prepare(sample)], ["p"], "s")[0]) == 1


def test_a_folder_without_weights_is_one_clear_line(tmp_path: Path) -> None:
    folder = blip(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        captioner(folder)
    with pytest.raises(UserError, match="no such folder"):
        captioner(tmp_path / "nothing")


def test_a_cache_of_fixed_size_changes_no_caption(folder: Path) -> None:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    if kind in ("blip", "git", "paligemma", "smolvlm"):
        with pytest.raises(UserError, match="do not support --compile-decoder"):
            captioner(folder, compile_decoder=True)
        return
    plain = captioner(folder, max_tokens=8)
    fixed = captioner(folder, max_tokens=8, compile_decoder=True, batch_size=4)
    order = list(range(5))
    assert texts(fixed, order, 4) == texts(plain, order, 4)


def test_a_compiled_decoder_that_runs_out_of_memory_loses_no_caption(tmp_path: Path) -> None:
    one = captioner(blip2(tmp_path / "m"), max_tokens=4, compile_decoder=True, batch_size=8)
    plain, sizes = one.model.generate, []

    def generate(pixel_values: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pixel_values=pixel_values, **options)

    one.model.generate = generate
    prepared = [one.prepare(sample) for sample in SAMPLES[:8]]
    items = list(zip(prepared, UIDS, strict=False))
    found = Batches().run(lambda some: one.caption(*zip(*some, strict=True), "s"), items)
    one.model.generate = plain
    assert found == one.caption(prepared, UIDS[:8], "s")
    assert set(sizes) == {8, 4, 2}
