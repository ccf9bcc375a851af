"""Compare the flags of a column with caption_flags on each text."""

import random
import re
import sys
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.caption.flag_column import BYTES_AT_ONCE, CASE_VARIANTS, NO_WORD, flag_column
from capmix.caption.flags import FLAGS, WORD, caption_flags

PHRASES = """
stock photos|Stock Illustration|royalty-free|ROYALTY FREE|gettyimages|getty images|shutterstock|
istock|Alamy|watermark|no image available|click here|all rights reserved|wallpaper|
I'm sorry|I\u2019m unable|i am not able|I can't|I cant|i cannot|could not|I couldn't|I won\u2019t|
as an AI|language model|unable to see|can\u2019t assist|cannot help|
restock photo|stock photograph|non-royalty|wallpapers|Istocks|can not help|i am sorrya|click  here
""".replace("\n", "").split("|")
ODD = """
\u017ftock photo|\u017fhutter\u017ftock on the wall|\u0131stock and click|\u212alick|
ro\u0443alty free|\u0130stock|\u00e9stock photo|stock photo\u00e9|stock photo\u0301|
no\u2014image available|no\u00a0image available|\u4e2d\u6587 click here|\U0001f600|
\U0001f600\U0001f468\u200d\U0001f469|
\u03a3\u03b1\u03c2|\u0391\u03a3|\u1e9e|\ufb01sh|caf\u00e9|nai\u0308ve|\u0130\u0130|\u0661\u0662|\u00b2|
\u0e01\u0e33|\u2028|\ufeff|\u200b|\ud7ff|\ue000|\U0010ffff|\x00|\x1c|\x85|\u3000|can\u0307|\u2160|\u24b6
""".replace("\n", "").split("|")
WORDS = [
    *("a", "the", "on", "of", "in", "with", "two", "three", "red", "old", "dog", "dogs", "cat"),
    *("table", "sea", "standing", "next", "to", "market", "right", "American", "canal", "note"),
    *("photograph", "photographs", "photographer", "mark", "wall", "3", "2019", "x_y", "_"),
]
PERSONAL = [
    *(
        "me@example.com",
        "Tel: 1234567",
        "+44 20 7946 0958",
        "call\u00a0+1\u2011212\u2011555\u20110123",
    ),
    *(
        "01\u00a023 45 67 89",
        "me@example.com",
        "j\u00fcrgen@m\u00fcller.de",
        "icon@2x.png",
        "1920 x 1080",
        "+49 (0)30 12345678",
    ),
]
JOINTS = [
    *[" "] * 12,
    ", ",
    "-",
    ".",
    "\n",
    "\t",
    " \u2014 ",
    "\u2014",
    "'",
    "\u2019",
    "\u3000",
    "",
]
BLANKS = [
    "",
    " ",
    "\t\r\n",
    "\x1c\x1d\x1e\x1f",
    "\x85\xa0",
    "\u2003\u3000",
    "...",
    "\u2028",
    "\x00",
]
PROMPTS = ["Describe this image.", " \u0391\u03a3 \u0130mage:\u2019", "a "]


def make_text(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.01:
        return draw.choice(BLANKS) * draw.randint(1, 3)
    if kind < 0.02:
        prompt = draw.choice(PROMPTS)
        return draw.choice([prompt, prompt.upper(), prompt.strip().lower()]) + draw.choice(WORDS)
    bank = WORDS if kind < 0.7 else [*WORDS, *ODD]
    words = draw.choices(bank, k=draw.randint(1, 14))
    if kind > 0.9:
        words.insert(draw.randrange(len(words) + 1), draw.choice(PHRASES))
    if draw.random() < 0.1:
        words.insert(draw.randrange(len(words) + 1), draw.choice(PERSONAL))
    if 0.6 < kind < 0.8:  # repeated two or three times
        start, length = draw.randrange(len(words)), draw.randint(1, 8)
        words[start:start] = words[start : start + length] * draw.randint(1, 2)
    text = "".join(word + draw.choice(JOINTS) for word in words)
    return draw.choice([str, str, str, str.upper, str.title])(text)


def wrong_in(texts: list[str], *settings: str | None) -> list[tuple[str, list[str], list[str]]]:
    """Return the texts whose flags differ from caption_flags."""
    found = flag_column(pa.array(texts, pa.string()), *settings).to_pylist()  # type: ignore[arg-type]
    expected = [caption_flags(text, *settings) for text in texts]  # type: ignore[arg-type]
    return [one for one in zip(texts, found, expected, strict=True) if one[1] != one[2]]


def check(count: int, slow_ones: int) -> None:
    draw = random.Random(count)
    texts = [make_text(draw) for _ in range(count)]
    assert wrong_in(texts, "stop") == []
    flags = Counter(flag for text in texts[:10_000] for flag in caption_flags(text, "stop"))
    assert all(50 <= flags[name] <= 5_000 for name in ("empty", "loop", "boilerplate", "refusal"))
    for prompt in PROMPTS:
        assert wrong_in(texts[: count // 4], "stop", prompt) == []
    assert wrong_in(texts[: count // 4], "length", PROMPTS[0]) == []
    assert wrong_in(texts[:slow_ones], "stop", PROMPTS[0], "en") == []
    every = flag_column(pa.array(texts[:slow_ones]), "length", PROMPTS[2], "en")
    assert set(every.flatten().to_pylist()) == set(FLAGS)


def test_flags_of_a_column_are_those_of_each_text() -> None:
    check(20_000, 500)


@pytest.mark.slow
def test_flags_of_a_million_texts_are_those_of_each_text() -> None:
    check(1_200_000, 20_000)


@given(st.lists(st.none() | st.text() | st.text("ab \u2014\u0130\u017f.", max_size=60)))
def test_flags_of_any_texts_are_those_of_each_text(texts: list[str | None]) -> None:
    expected = [None if text is None else caption_flags(text, "stop") for text in texts]
    column = pa.array(texts, pa.string())
    assert flag_column(column, "stop").to_pylist() == expected
    assert flag_column(column[1:], "stop").to_pylist() == expected[1:]


@given(st.lists(st.sampled_from(["a", "b", "longer word", "longer words", "\u00e9"]), max_size=30))
def test_loops_of_any_length_are_found(words: list[str]) -> None:
    assert wrong_in([" ".join(words), "\u2014".join(words)], "stop") == []


def test_long_texts_are_flagged_in_a_piece_of_their_own() -> None:
    long = "word " * (BYTES_AT_ONCE // 5)
    unlike = " ".join(map(str, range(BYTES_AT_ONCE // 5)))
    texts = ["a dog", long, unlike, "dog dog dog", f"{unlike} stock photo", "", "cat"]
    found = flag_column(pa.array(texts), "stop").to_pylist()
    assert found == [[], ["loop"], [], ["loop"], ["boilerplate"], ["empty"], []]


def test_a_column_without_texts_has_no_flags() -> None:
    for texts in ([], [None, None]):
        found = flag_column(pa.array(texts, pa.string()), "stop")
        assert (found.type, found.to_pylist()) == (pa.list_(pa.string()), texts)


def test_what_the_search_relies_on_holds_for_every_character() -> None:
    """Letters that match ASCII letters case-insensitively, and characters of words."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    alike = {char for char in re.findall("[a-z]", every, re.IGNORECASE) if not char.isascii()}
    assert {char for char in alike if not char.lower()[0].isascii()} == set(CASE_VARIANTS)
    words = "".join(WORD.findall(every))
    assert not any(char.isspace() for char in words)
    others = "".join(char for char in every if not char.isascii())
    assert NO_WORD.sub("", others) == "".join(WORD.findall(others))
