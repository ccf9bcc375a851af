from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.errors import UserError
from capmix.training.texts import check_texts, draw_text, parse_texts

CAPTIONS = {"caption_raw": "r", "caption_b": "b0", "caption_b_k1": "b1", "caption_bc": "other"}


def test_sources_come_by_their_weights_and_captions_of_one_evenly() -> None:
    """Chi-square at 0.1% with 2 degrees of freedom: 13.8."""
    drawn = Counter(
        draw_text(CAPTIONS, {"raw": 1, "b": 3}, f"0/0/0/{n}", otherwise="") for n in range(4000)
    )
    expected = {"r": 1000, "b0": 1500, "b1": 1500}
    assert drawn.keys() == expected.keys()
    assert sum((drawn[k] - n) ** 2 / n for k, n in expected.items()) < 13.8


@given(st.text())
def test_a_visit_draws_the_same_text_again(visit: str) -> None:
    texts = {"raw": 0.5, "b": 0.5}
    assert draw_text(CAPTIONS, texts, visit, "") == draw_text(CAPTIONS, texts, visit, "")


def test_a_source_without_a_text_leaves_it_to_the_others() -> None:
    assert {draw_text({"caption_raw": "r"}, {"raw": 1, "x": 9}, str(n), "") for n in range(50)} == {
        "r"
    }
    assert draw_text({"caption_raw": " "}, {"raw": 1}, "v", otherwise="chosen") == "chosen"


def test_faulty_weights_are_told() -> None:
    assert parse_texts("raw=0.5, b=1") == {"raw": 0.5, "b": 1.0}
    with pytest.raises(UserError, match="expected SOURCE=WEIGHT"):
        parse_texts("raw")
    for texts in ({"raw": 0.0}, {"raw": -1.0, "b": 2.0}, {"raw": float("nan")}):
        with pytest.raises(UserError, match="not all 0"):
            check_texts(texts)
