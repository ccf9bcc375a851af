import pytest

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
    ],
)
def test_flags(text: str, finish: str, prompt: str | None, expected: list[str]) -> None:
    assert caption_flags(text, finish, prompt) == expected
