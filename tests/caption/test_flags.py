import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.caption.flags import caption_flags, check_language
from capmix.errors import UserError


@pytest.mark.parametrize(
    ("text", "language", "wrong"),
    [
        ("a red apple on the old wooden table", "en", False),
        ("ein roter Apfel liegt auf dem alten Tisch", "en", True),
        ("ein roter Apfel liegt auf dem alten Tisch", "de", False),
        ("два кота сидят на старом диване", "en", True),
        ("dog", "en", False),
        ("2019 - 14:30", "de", False),
        ("ein roter Apfel liegt auf dem alten Tisch", None, False),
    ],
)
def test_another_language_is_flagged_where_one_is_asked_for(
    text: str, language: str | None, wrong: bool
) -> None:
    assert caption_flags(text, "stop", None, language) == ["wrong_language"] * wrong


def test_a_language_that_cannot_be_told_is_one_clear_line() -> None:
    check_language("en")
    with pytest.raises(UserError, match="expected one of .*, en, "):
        check_language("english")


@pytest.mark.parametrize(
    ("text", "finish", "prompt", "expected"),
    [
        ("a dog in the grass", "stop", None, []),
        ("  ", "stop", None, ["empty"]),
        ("a hat on top of a hat on top of a hat on top of", "length", None, ["loop", "unfinished"]),
        ("ray ban ray ban ray ban sunglasses", "stop", None, ["loop"]),
        ("very very good", "stop", None, []),
        ("Describe this image. A dog.", "stop", "describe this image.", ["prompt_echo"]),
        ("a dog, royalty-free stock photo", "stop", None, ["boilerplate"]),
        ("I\u2019m sorry, I can't help with that", "stop", None, ["refusal"]),
        ("I can see a dog", "stop", None, []),
        ("a sign, call (212) 555-0123 or info@example.com", "stop", None, ["email", "phone"]),
    ],
)
def test_flags(text: str, finish: str, prompt: str | None, expected: list[str]) -> None:
    assert caption_flags(text, finish, prompt) == expected


@given(st.lists(st.sampled_from("abc"), max_size=24))
def test_a_loop_is_one_to_six_words_three_times_in_a_row(words: list[str]) -> None:
    expected = any(
        words[start : start + length] * 3 == words[start : start + 3 * length]
        for length in range(1, 7)
        for start in range(len(words) - 3 * length + 1)
    )
    assert ("loop" in caption_flags(" ".join(words), "stop")) == expected
