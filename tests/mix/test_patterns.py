"""Functions whose time grows faster than the length of their text."""

import time

import numpy as np
import pytest
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix import limits
from capmix.mix.expression import bounded, parse
from capmix.mix.patterns import pattern_steps
from capmix.mix.recipe import Clause, Recipe

EVERY = "list_count(regexp_extract_all({}, '[ab]*c|a')) > 1000000"


def letters(count: int) -> str:
    return "".join(np.random.default_rng(0).choice(["a", "b"], count))


def mixed(texts: list[str], where: str) -> list[int]:
    samples = [Made(f"{i:032x}", raw=text) for i, text in enumerate(texts)]
    here = HandMade(fresh_folder(), {"00000": samples})
    here.mix(Recipe(name="slow", about="", clauses=[Clause(source="raw", where=where)]))
    return [int(row["uid"], 16) for row in here.rows()]


@pytest.mark.parametrize(
    "where",
    [
        EVERY.format("raw_text"),
        EVERY.format("raw_text || 'a'"),
        "regexp_replace(raw_text, '[ab]*c|a', '', 'g') = ''",
        "len(regexp_split_to_array(raw_text, '[ab]*c|a')) = 1",
        "nfc_normalize(raw_text) = ''",
        "regexp_replace(regexp_replace(raw_text, 'c', '', 'g'), 'd', '') = ''",
    ],
)
def test_a_text_too_long_for_a_slow_function_ends_the_recipe_at_once(where: str) -> None:
    began = time.monotonic()
    expected = r"^recipe slow: \w+ accepts texts of at most [\d,]+ bytes here, but one has 900,0"
    with pytest.raises(UserError, match=expected) as caught:
        mixed([letters(900_000)] * 3, where)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_shorter_texts_and_first_matches_go_through() -> None:
    texts = ["abc", letters(900_000), "cab"]
    assert mixed(texts, "regexp_matches(raw_text, '^[abc]{3}$')") == [0, 2]
    assert mixed(texts, "regexp_replace(left(raw_text, 3), '[ab]', '', 'g') = 'c'") == [0, 2]
    nested = (
        "regexp_replace(regexp_replace(left(raw_text, 3), 'a', 'x', 'g'), '[xb]', '', 'g') = 'c'"
    )
    assert mixed(texts, nested) == [0, 2]
    assert mixed(texts, "raw_text ~ 'bc' or raw_text similar to 'c.*'") == [0, 2]


def test_the_limit_of_time_is_kept_between_rows_of_long_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"its SQL took over 0\.3 s"):
        mixed([letters(15_000)] * 300, EVERY.format("raw_text"))
    assert time.monotonic() - began < 10


def test_a_pattern_of_the_row_is_refused() -> None:
    with pytest.raises(UserError, match="regexp_matches: the pattern must be a literal"):
        parse("regexp_matches(raw_text, uid)", "clause 1")


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("", 1),
        ("abc", 3),
        ("[^]a-z]+x", 3),
        ("a{30}", 30),
        ("(ab){2,5}", 15),
        ("(([ab]{1,30}){1,30}c)|a", 934),
        (r"\d{4}-\d{2}", 7),
        (r"\pL", 22),
        ("((", 1),
        ("x{99999999999999999999}", 999_999_999),
    ],
)
def test_steps_of_a_pattern_are_those_that_re2_writes_out(pattern: str, steps: int) -> None:
    assert pattern_steps(pattern) == steps


def test_many_slow_calls_share_the_time_of_a_row() -> None:
    one = "regexp_extract_all(t, 'abcde') = []"
    (call,) = bounded(f"select {one} from batch")[1]
    assert call.longest == 20_000
    calls = bounded(f"select {' or '.join([one] * 40)} from batch")[1]
    assert [call.longest for call in calls] == [10_000] * 40
    assert bounded("select length(t) from batch") == ("select length(t) from batch", ())


def test_each_of_nested_calls_is_bounded_once() -> None:
    sql, calls = bounded(
        "select regexp_extract(regexp_replace(regexp_replace(t, 'a', '', 'g'), 'b', ''), 'c')"
    )
    assert sql.count("capmix_at_most(") == len(calls) == 3
    assert "capmix_at_most(t, 44721, 'regexp_replace')" in sql
    assert "regexp_extract(capmix_at_most(regexp_replace(capmix_at_most(regexp_replace(" in sql
