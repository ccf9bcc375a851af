"""Captions from slots equal those of `generate`, whatever is beside them and whatever fails."""

import json
import random
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import image_bytes
from tiny_models import blip, blip2, llava, qwen2_vl, qwen3_vl, smolvlm

from capmix.caption.backends import slot_sizes, slot_state
from capmix.caption.backends.transformers import TransformersCaptioner
from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.caption.stream import Running, StreamedImage
from capmix.engine.batches import Batches
from capmix.engine.busy import Busy
from capmix.pool import Sample

COUNT = 18
BUILDERS = [blip, blip2, llava, smolvlm, qwen2_vl, qwen3_vl]
# The inputs of SmolVLM and Qwen have several shapes here, and images of one shape run together.
SAMPLES = [
    Sample(str(i), str(i), image_bytes(i, (40 + 60 * (i % 3), 30)), "jpg", None)
    for i in range(COUNT)
]
LENGTHS = {"min_tokens": 2, "max_tokens": 9}


@pytest.fixture(scope="module", params=BUILDERS, ids=lambda build: build.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("slots") / "m")
    return made


def captioner(folder: Path, **settings: Any) -> TransformersCaptioner:
    return TransformersCaptioner(CaptionSettings(model=str(folder), **(LENGTHS | settings)))


def streamed(
    one: TransformersCaptioner, order: Sequence[int], first: int = 0, seconds: float = 60.0
) -> dict[int, StreamedImage]:
    def images() -> Iterator[StreamedImage]:
        for i in order:
            yield StreamedImage(one.prepare(SAMPLES[i]), SAMPLES[i].uid, first, i == 7, about=i)

    found = list(chain.from_iterable(one.stream(images(), Running("s", Batches(seconds), Busy()))))
    assert sorted(image.about for image in found) == sorted(order)
    return {image.about: image for image in found}


def generated(one: TransformersCaptioner) -> list[list[Caption]]:
    """One image at a time, by `generate`."""
    return [one.caption([one.prepare(s)], [s.uid], "s")[0] for s in SAMPLES]


@pytest.mark.parametrize(
    ("captions", "temperature"),
    [
        (1, 0.0),
        (3, 1.0),
        pytest.param(1, 1.0, marks=pytest.mark.slow),
        pytest.param(3, 0.0, marks=pytest.mark.slow),
    ],
)
def test_captions_equal_those_of_generate(folder: Path, temperature: float, captions: int) -> None:
    one = captioner(folder, temperature=temperature, captions_per_image=captions, slots=7)
    expected = generated(one)
    shuffled = random.Random(0).sample(range(COUNT), COUNT)
    for order in (range(COUNT), shuffled, shuffled[:2]):
        found = streamed(one, order)
        assert {i: image.captions for i, image in found.items()} == {i: expected[i] for i in order}
    later = streamed(one, shuffled, first=captions - 1)
    assert all(image.captions == expected[i][captions - 1 :] for i, image in later.items())
    assert streamed(one, shuffled, first=captions)[0].captions == []


def test_freed_slots_are_refilled(small: Path) -> None:
    """Six slots write 18 captions of different lengths in fewer steps than three batches of six."""
    one = captioner(small, temperature=3.0, slots=6, min_tokens=0, max_tokens=25)
    lengths = [len(caption.text.split()) for (caption,) in generated(one)]
    assert len(set(lengths)) > 3
    model, steps = one._slots._model, []
    plain = model.step
    model.step = lambda *inputs: steps.append(1) or plain(*inputs)
    streamed(one, range(COUNT))
    batches = [lengths[i : i + 6] for i in range(0, COUNT, 6)]
    assert len(steps) < sum(map(max, batches))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip2(tmp_path_factory.mktemp("slots") / "small")


class Failing:
    """Stands before a model's method; `check(call number, arguments)` may raise."""

    def __init__(self, one: TransformersCaptioner, method: str, check: Any):
        assert one._slots is not None
        self.model, self.calls, self.check = one._slots._model, 0, check
        self.plain = getattr(self.model, method)
        setattr(self.model, method, self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        self.check(self.calls, *arguments)
        return self.plain(*arguments)


@pytest.mark.parametrize("method", ["prompt", "step"])
def test_no_caption_is_lost_without_memory(small: Path, method: str) -> None:
    """Memory runs out at random calls, up to the fewest slots and beyond."""
    one = captioner(small, captions_per_image=2, slots=16)
    expected = generated(one)
    draw = random.Random(1)

    def check(number: int, *_: Any) -> None:
        if draw.random() < 0.2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    Failing(one, method, check)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected
    assert one._slots is not None
    sizes = one._slots.sizes
    assert (sizes.slots < 16) == (method == "step")
    assert (sizes.slots, sizes.group) >= (2, 1)


@pytest.mark.parametrize("share", [1e-9, 3e-6])
def test_slots_fit_into_memory(small: Path, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_sizes, "CPU_SHARE", share)
    one = captioner(small, captions_per_image=2, slots=64)
    expected = generated(one)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected
    assert one._slots is not None
    assert 2 <= one._slots.sizes.slots < 64
    assert (one._slots.sizes.slots == 2) == (share < 1e-8)


def test_an_image_that_fails_leaves_the_others_alone(small: Path) -> None:
    one = captioner(small, slots=8)
    expected = generated(one)
    bad = one._collate([one.prepare(SAMPLES[5])])["pixel_values"]

    def check(_: int, inputs: dict[str, Any]) -> None:
        if any(torch.equal(one_image, bad[0]) for one_image in inputs["pixel_values"]):
            raise RuntimeError("bad image")

    Failing(one, "prompt", check)
    plain = one.model.generate
    one.model.generate = lambda **inputs: check(0, inputs) or plain(**inputs)
    found = streamed(one, range(COUNT))
    assert str(found[5].error) == "RuntimeError: bad image"
    assert [found[i].captions for i in range(COUNT) if i != 5] == expected[:5] + expected[6:]


def test_nan_fails_only_its_image(small: Path) -> None:
    one = captioner(small, slots=24, captions_per_image=2)
    expected = generated(one)
    assert one._slots is not None
    plain = one._slots._model.prompt

    def prompt(inputs: dict[str, Any]) -> Any:
        found = plain(inputs)
        found.logits[0, 7] = torch.nan
        return found

    one._slots._model.prompt = prompt
    found = streamed(one, range(COUNT))
    failed = {i for i, image in found.items() if image.error}
    assert 0 < len(failed) < COUNT
    assert all("NaN" in str(found[i].error) for i in failed)
    assert all(found[i].captions == expected[i] for i in set(range(COUNT)) - failed)


def test_a_step_that_hangs_is_left_to_generate(small: Path) -> None:
    one = captioner(small, slots=8)
    expected = generated(one)

    def check(number: int, *_: Any) -> None:
        while number == 3:
            pass

    Failing(one, "step", check)
    found = streamed(one, range(COUNT), seconds=2.0)
    assert [found[i].captions for i in range(COUNT)] == expected


def test_a_stream_that_is_left_early_leaves_nothing_behind(small: Path) -> None:
    one = captioner(small, slots=8)
    expected = generated(one)
    images = (StreamedImage(one.prepare(s), s.uid, about=i) for i, s in enumerate(SAMPLES))
    stream = one.stream(images, Running("s", Batches(), Busy()))
    next(stream)
    stream.close()
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected


def test_zero_slots_leave_all_to_generate(small: Path) -> None:
    assert captioner(small, slots=0)._slots is None
    one = captioner(small, slots=0)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == generated(captioner(small))


def test_errors_while_captions_start_or_end_lose_and_double_none(small: Path) -> None:
    """One error each, also when memory holds fewer slots than prompts need."""
    for settings in ({}, {"captions_per_image": 2}):
        one = captioner(small, slots=12, **settings)
        expected = generated(one)
        assert one._slots is not None
        decode, calls = one._slots._decode, []

        def failing(tokens: list[int], decode: Any = decode, calls: list[int] = calls) -> Caption:
            calls.append(1)
            if len(calls) == 5:
                raise ValueError("once")
            return decode(tokens)

        one._slots._decode = failing
        found = streamed(one, range(COUNT))
        assert [found[i].captions for i in range(COUNT)] == expected


def test_an_error_after_some_prompts_of_a_group_fitted(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = captioner(small, slots=64)
    expected = generated(one)
    assert one._slots is not None
    monkeypatch.setattr(
        one._slots.sizes, "fit", lambda *_: setattr(one._slots.sizes, "_fitting", 10)
    )
    plain, calls = slot_state.SlotState.start, []

    def start(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        plain(*arguments)

    monkeypatch.setattr(slot_state.SlotState, "start", start)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected


def test_steps_that_always_fail_leave_all_to_generate(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = captioner(small, slots=4)
    expected = generated(one)

    def check(*_: Any) -> None:
        raise RuntimeError("unsupported")

    failing = Failing(one, "step", check)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected
    assert failing.calls == 3
    assert "captions come from generate" in caplog.text


@pytest.mark.parametrize("text", [{"model_type": "mistral", "sliding_window": 16}, {}])
def test_windows_and_eager_attention_are_left_to_generate(
    tmp_path: Path, text: dict[str, Any]
) -> None:
    folder = llava(tmp_path / "m")
    about = json.loads((folder / "config.json").read_text())
    about["text_config"] |= text
    if not text:
        about["attn_implementation"] = "eager"
    (folder / "config.json").write_text(json.dumps(about))
    one = captioner(folder, temperature=0)
    assert one._slots is None
    assert captioner(llava(tmp_path / "plain"))._slots is not None


def test_a_caption_may_end_at_the_last_position_of_the_model(tmp_path: Path) -> None:
    folder = blip2(tmp_path / "m")
    one = captioner(folder, max_tokens=9, min_tokens=9, slots=4)
    positions = one.model.language_model.model.decoder.embed_positions
    weight = positions.weight.data[: positions.offset + 5 + 9 - 1]  # the prompt has 5 tokens
    positions.weight.data, positions.num_embeddings = weight, len(weight)
    expected = generated(one)
    found = streamed(one, range(COUNT))
    assert [found[i].captions for i in range(COUNT)] == expected
    assert one._slots is not None
    assert one._slots._failures == 0
