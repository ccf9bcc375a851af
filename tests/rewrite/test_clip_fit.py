"""Texts are cut to CLIP's context."""

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.rewrite.clip_fit import ClipFit

TOKENIZER = open_clip.get_tokenizer("ViT-B-32", context_length=1000)
FIT = ClipFit(77)
WORDS = st.sampled_from(["apple", "Straße", "42", "!?", "a", "ééé", "犬犬", "\n", "unbelievably"])


def tokens(text: str) -> int:
    """Count the tokens that open_clip itself puts before the padding."""
    return int((TOKENIZER([text])[0] != 0).sum())


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, max_size=120).map(" ".join))
def test_a_cut_text_is_the_longest_beginning_in_words_that_fits(text: str) -> None:
    found = FIT.cut(text)
    assert FIT.count(found) == tokens(found) <= 77
    assert text.startswith(found)
    assert FIT.cut(found) == found
    words = text.split()
    kept = len(found.split())
    assert found.split() == words[:kept]
    if kept < len(words):
        assert tokens(" ".join(words[: kept + 1])) > 77


@pytest.mark.parametrize("text", ["犬" * 100, "a" * 2000, "!" * 300])
def test_a_text_without_spaces_is_cut_after_a_character(text: str) -> None:
    found = FIT.cut(text)
    assert found
    assert tokens(found) <= 77
    assert text.startswith(found)
