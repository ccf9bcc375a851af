"""Templates: what a prompt contains, and that texts are data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.errors import UserError
from capmix.prompts.template import (
    MAX_LENGTH,
    Rendered,
    TemplateField,
    is_template,
    parse_template,
    render,
)


def prompt(template: str, **texts: str | None) -> str | None:
    return render(parse_template(template, "--prompt"), texts).prompt


def test_fields_are_replaced_by_the_texts_of_the_sample() -> None:
    assert prompt("Merge {raw} and {blip2}.", raw="one", blip2="two") == "Merge one and two."


def test_a_part_is_left_out_if_one_of_its_fields_is_missing_or_empty() -> None:
    template = "Describe.[[ Alt text: {raw}.]][[ Both: {raw}, {blip2}.]]"
    assert prompt(template, raw="x", blip2="y") == "Describe. Alt text: x. Both: x, y."
    assert prompt(template, raw="x", blip2=" \n") == "Describe. Alt text: x."
    assert prompt(template, raw=None) == "Describe."
    assert prompt(template, raw="\u200b\x00") == "Describe."


def test_required_fields_that_are_missing_are_named() -> None:
    template = parse_template("{raw} {field:title} [[ {blip2} ]] {raw:3}", "--prompt")
    assert template.names == ("raw", "field:title", "blip2")
    assert template.required == ("raw", "field:title")
    assert render(template, {"raw": " "}) == Rendered(None, ("raw", "field:title"))


def test_doubled_braces_and_escaped_brackets_are_literal() -> None:
    assert prompt('{{"a": [1]}} {[[}x{]]} {raw}', raw="b") == '{"a": [1]} [[x]] b'


def test_a_field_has_a_number_of_tokens() -> None:
    assert prompt("{raw:2}|", raw="one two three") == "one two|"
    template = parse_template("{raw:256}{field:a.b-c:7}", "--prompt")
    fields = [one for part in template.parts for one in part.fields]
    assert fields == [TemplateField("raw", 256), TemplateField("field:a.b-c", 7)]


@given(st.text(st.characters(exclude_characters="{}[]")))
def test_a_template_without_marks_is_its_own_prompt(text: str) -> None:
    assert prompt(text) == text


@given(st.lists(st.sampled_from(["{raw}", "{blip2}", "[[", "]]", "{{", "}}", "a"])).map("".join))
def test_texts_are_never_parsed(text: str) -> None:
    assert prompt("<{raw}>[[{blip2}]]", raw=f"a{text}.", blip2=None) == f"<a{text}.>"


@given(st.text("{}[]ra:w1 "))
def test_any_template_is_parsed_or_refused_in_one_line(text: str) -> None:
    problem = "--prompt, character 1"
    try:
        parse_template(text, "--prompt")
    except UserError as error:
        problem = str(error)
    assert problem.startswith("--prompt, character ")
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("a {Raw}", "character 3 ('{Raw}'): expected {NAME}"),
        ("{raw", "character 1 ('{raw'): expected {NAME}"),
        ("{raw:0}", "character 1 ('{raw:0}'): expected 1 to 32768 tokens"),
        ("{raw:x}", "character 1 ('{raw:x}'): expected {NAME}"),
        ("a }", "character 3 ('}'): no field is open"),
        ("[[ a ]]", "character 1 ('[[ a ]]'): the part has no field"),
        ("[[ {raw}", "character 1 ('[[ {raw}'): the part has no end"),
        ("[[ {raw} [[", "character 10 ('[['): a part cannot contain another one"),
        ("{raw} ]]", "character 7 (']]'): no part is open"),
        ("a" * (MAX_LENGTH + 1), f"a template has at most {MAX_LENGTH}"),
        ("{raw} " * 65, "65 fields; a template has at most 64"),
    ],
)
def test_errors_have_a_position(template: str, error: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_template(template, "--prompt")
    assert error in str(raised.value)


def test_prompts_with_json_are_no_templates() -> None:
    assert not is_template('Answer as {"caption": "..."}')
    assert not is_template("<CAPTION> [[x]]")
    assert is_template("Alt text: { raw}")
    assert is_template("{raw:256}")
