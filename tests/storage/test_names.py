import pytest

from capmix.errors import UserError
from capmix.storage.names import check_scorer_name, check_source_name, no_captions


@pytest.mark.parametrize(
    "name", ["mini", "blip2", "k", "best", "score", "alt_text", "k2_mini", "a_b"]
)
def test_a_name_without_a_clash_is_accepted(name: str) -> None:
    check_source_name(name)
    check_source_name(name, "annotation")


@pytest.mark.parametrize(
    "name",
    ["mini_best", "mini_k0", "mini_k12", "mini_score", "mini_score_clip", "mini_best_truncated"],
)
def test_a_name_of_another_sources_column_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"annotation '{name}': names that contain _score or"):
        check_source_name(name, "annotation")


def test_two_scorers_with_the_same_columns_in_recipes_are_refused() -> None:
    check_scorer_name("a-b", ["a-b", "a-c"])
    for other in ("a_b", "a.b", "A-B"):
        with pytest.raises(UserError, match=f"scorer 'a-b': .* scorer '{other}'"):
            check_scorer_name("a-b", [other])


def test_the_error_for_a_source_without_captions_says_what_writes_them() -> None:
    found = "no captions of source {}; sources: raw, mini{}"
    hints = {
        "mni": "; did you mean 'mini'?",
        "blip2": "; run `capmix caption --source blip2` (or `capmix rewrite`) first",
        "edited": "; edit captions with `capmix view` first",
        "../pool": "",
    }
    for source, hint in hints.items():
        assert no_captions(source, ["raw", "mini"]) == found.format(repr(source), hint)
