import pytest

from capmix.caption.flags import caption_flags


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
