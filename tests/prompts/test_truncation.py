"""Texts are cut at a token of the model."""

from hypothesis import given
from hypothesis import strategies as st

from capmix.prompts.truncation import by_pieces, by_tokens
from tests.tiny_models import small_tokenizer

TOKENIZER = small_tokenizer()


class Slow:
    """The tokenizer without offsets."""

    is_fast = False

    def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
        return {"input_ids": TOKENIZER(text, add_special_tokens=False)["input_ids"]}


@given(st.text(st.sampled_from("ab \u00e9\u4e24.")), st.integers(1, 20))
def test_the_result_is_a_beginning_with_at_most_n_tokens(text: str, count: int) -> None:
    def size(text: str) -> int:
        return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])

    found = by_tokens(TOKENIZER)(text, count)
    assert text.startswith(found)
    assert size(found) <= count
    assert found == text if size(text) <= count else len(found) < len(text)


@given(st.text("ab c."), st.integers(1, 8))
def test_slow_tokenizers_cut_within_the_same_bound(text: str, count: int) -> None:
    found = by_tokens(Slow())(text, count)
    assert text.startswith(found)
    assert len(TOKENIZER(found, add_special_tokens=False)["input_ids"]) <= count
    assert len(found) >= len(by_tokens(TOKENIZER)(text, count))


def test_words_count_as_pieces_of_four_letters() -> None:
    assert by_pieces("photograph of a cat", 4) == "photograph of"
    assert by_pieces("photograph", 2) == "photogra"
    assert by_pieces("a b", 2) == "a b"
    assert by_pieces("", 2) == ""
