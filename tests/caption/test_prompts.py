"""Which prompts a sample gets, and which captions they write."""

import pytest

from capmix.caption.captioners import make_captioner
from capmix.caption.prompts import (
    CaptionPrompts,
    caption_number,
    caption_prompts,
    prompt_openings,
)
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.pool import Sample

METADATA = {"title": "Pier", "tags": ["a", 1, "b"], "year": 1999, "more": {"x": 1}}
SAMPLE = Sample("k", "u", b"", "jpg", "a red apple", METADATA)


def test_a_constant_prompt_is_recorded_and_used_as_it_is() -> None:
    for text in ("Describe this image.", "<CAPTION>", 'Answer as {"a": 1} [[x]]', "a }} b"):
        prompts = caption_prompts(text)
        assert prompts.marker == {"prompt": text}
        assert prompts.of(None) == prompts.of(SAMPLE) == (text,)
        assert CaptionSettings(prompt=[text]) == CaptionSettings(prompt=text)
    assert caption_prompts(None, "own").marker == {"prompt": "own"}
    assert caption_prompts("", None).of(None) == (None,)


def test_fields_are_the_texts_of_the_sample() -> None:
    prompts = caption_prompts("{raw}|{field:title}|{field:tags}|{field:year}[[|{field:more}]]")
    assert prompts.of(SAMPLE) == ("a red apple|Pier|a, b|1999",)
    assert prompts.marker["template_format"] == 1


def test_a_sample_without_a_required_text_has_a_reason() -> None:
    prompts = caption_prompts(["A", "B {raw} {field:none}"])
    with pytest.raises(SampleError, match="no text for --prompt in field:none") as raised:
        prompts.of(SAMPLE)
    assert raised.value.reason == "missing_text"
    assert prompts.required == ("raw", "field:none")


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("{blip2}", r"--prompt: \{blip2\}: captioners have the fields"),
        ("{raw", r"--prompt, character 1"),
        (["A", ""], "one of several prompts is empty"),
        (["A"] * 65, "65 prompts; expected at most 64"),
    ],
)
def test_errors_come_before_the_model_is_loaded(prompt: str | list[str], error: str) -> None:
    settings = CaptionSettings(model="server:http://127.0.0.1:9/v1", prompt=prompt)
    with pytest.raises(UserError, match=error):
        make_captioner(settings, "s")


def test_a_captioner_without_templates_takes_one_prompt_as_it_is() -> None:
    model = "counting_captioner:CountingCaptioner"
    make_captioner(CaptionSettings(model=model, prompt="{anything"), "s")
    with pytest.raises(UserError, match="takes only one prompt; pass --prompt once"):
        make_captioner(CaptionSettings(model=model, prompt=["a", "b"]), "s")


def test_a_repeated_prompt_is_recognised_by_its_beginning() -> None:
    several = CaptionPrompts(("Alt: {raw}. Go", "What?"))
    settings = several.marker | {"captions_per_image": 2}
    assert prompt_openings(settings) == ["Alt:", "Alt:", "What?", "What?"]
    assert caption_number(settings) == 4
    assert prompt_openings({"prompt": "{raw}"}) == "{raw}"
    assert prompt_openings({"prompt": "{raw}", "template_format": 1}) is None
    assert prompt_openings({}) is None
    assert caption_number({"captions_per_image": 3, "prompt": "x"}) == 3
