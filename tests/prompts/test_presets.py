"""Presets are templates that can be parsed, and options that exist."""

import pytest

from capmix.errors import UserError
from capmix.prompts.presets import PRESETS, Preset, preset, preset_list
from capmix.prompts.template import parse_template, render

SOURCES = ("raw", "blip2")


@pytest.mark.parametrize("one", PRESETS, ids=lambda one: one.name)
def test_a_preset_asks_for_its_sources(one: Preset) -> None:
    assert preset(one.name) is one
    sources = SOURCES[: one.inputs]
    prompt = one.prompt(sources)
    if prompt is not None:
        template = parse_template(prompt, one.name)
        assert template.names == sources
        texts = dict.fromkeys(sources, "a red apple")
        rendered = render(template, texts).prompt
        assert rendered is not None
        assert rendered.count("a red apple") == one.inputs
    with pytest.raises(UserError, match=f"--preset {one.name}: expected"):
        one.prompt((*sources, "more"))


def test_fuse_leaves_out_the_line_of_a_missing_text() -> None:
    prompt = preset("fuse").prompt(SOURCES)
    assert prompt is not None
    template = parse_template(prompt, "fuse")
    both = render(template, {"raw": "Paris 2014", "blip2": "a tower"}).prompt or ""
    one = render(template, {"blip2": "a tower"}).prompt or ""
    assert "\nWeb text: Paris 2014\nCaption: a tower\n\nWrite" in both
    assert "\nCaption: a tower\n\nWrite" in one
    assert "Web text" not in one


def test_fuse_cuts_the_raw_text_at_256_tokens() -> None:
    prompt = preset("fuse").prompt(SOURCES)
    assert prompt is not None
    asked: list[int] = []

    def truncate(text: str, tokens: int) -> str:
        asked.append(tokens)
        return text

    render(parse_template(prompt, "fuse"), {"raw": "x", "blip2": "y"}, truncate)
    assert asked == [256, 256]


def test_an_unknown_preset_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="expected one of fuse, paraphrase.*did you mean 'fuse'"):
        preset("fuze")
    assert preset_list().startswith("fuse: merge")
