"""Settings fields define options: their errors, and the defaults of keywords and command line."""

from typing import Literal

import pytest

from capmix.caption.settings import CaptionSettings
from capmix.engine.settings import EngineSettings, RunSettings
from capmix.errors import UserError
from capmix.mix.settings import MixSettings
from capmix.settings.base import Settings, distribute, make, option, with_options
from capmix.settings.values import Names, Numbers, Pairs, Paths, Weights, Words
from capmix.storage.compare import changes, same_settings


class Example(Settings):
    count: int = option(3, "How many.", ge=1, le=9)
    share: float = option(0.5, "How much.", gt=0)
    kind: Literal["a", "b"] = option("a", "Which.")
    names: Names = option(list, "Names.")
    seeds: Numbers = option(lambda: [0], "Seeds.")
    paths: Paths | None = option(None, "Paths.")
    weights: Weights = option(dict, "Weights.")
    pairs: Pairs = option(dict, "Pairs.", repeats=True)
    words: Words = option(list, "Words.")
    inner: str | None = option(None, "Called otherwise.", name="outer")


def test_texts_of_a_command_line_are_values() -> None:
    made = make(
        Example,
        {
            "names": "raw, blip2",
            "seeds": "1,2",
            "paths": "a::b",
            "weights": "raw=0.5,blip2=1",
            "pairs": ["x=1", "y=a=b"],
            "words": "--lock-text --wd '0 1'",
            "outer": "o",
        },
    )
    assert made == Example(
        names=["raw", "blip2"],
        seeds=[1, 2],
        paths=["a", "b"],
        weights={"raw": 0.5, "blip2": 1.0},
        pairs={"x": "1", "y": "a=b"},
        words=["--lock-text", "--wd", "0 1"],
        inner="o",
    )


def test_what_is_not_given_keeps_its_default() -> None:
    assert make(Example, {"count": None, "names": None, "paths": None}) == Example()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "there: --count: expected a number of at least 1, found 0"),
        ({"count": 10}, "there: --count: expected a number of at most 9, found 10"),
        ({"count": "x"}, "there: --count: expected an integer, found 'x'"),
        ({"share": 0}, "there: --share: expected a number above 0, found 0"),
        ({"share": "x"}, "there: --share: expected a number, found 'x'"),
        ({"kind": "c"}, "there: --kind: expected 'a' or 'b', found 'c'"),
        ({"weights": "raw"}, "there: --weights: 'raw': expected weights such as raw=0.5,blip2=0.5"),
        ({"pairs": ["x"]}, "there: --pairs: x: expected NAME=VALUE"),
        ({"cuont": 1}, "there: unknown option 'cuont'; did you mean 'count'?"),
        ({"inner": "x"}, "there: unknown option 'inner'"),
    ],
)
def test_a_fault_is_one_line_that_names_the_option(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(Example, given, "there")
    assert str(error.value) == message


def test_keywords_find_their_settings() -> None:
    kinds = (CaptionSettings, EngineSettings, RunSettings)
    given = {"model": "m", "engine": "ray", "workers": 2, "force": True}
    assert distribute(given, "caption", kinds) == [
        {"model": "m"},
        {"engine": "ray", "workers": 2},
        {"force": True},
    ]
    with pytest.raises(
        UserError, match=r"caption: unknown option 'temprature'; did you mean 'temp"
    ):
        distribute({"temprature": 1}, "caption", kinds)


def test_options_are_in_the_docstring() -> None:
    @with_options(MixSettings)
    def function() -> None:
        """Do it."""

    assert "seed: Random seed. (default: 0)" in str(function.__doc__)


def test_settings_at_their_default_are_as_good_as_absent() -> None:
    defaults = {"top_p": 1.0, "recipe": {"shuffle": False, "clauses": [{"weight": "1"}]}}
    one = {"model": "m", "recipe": {"clauses": [{"source": "raw"}]}}
    other = {
        "model": "m",
        "top_p": 1.0,
        "recipe": {"shuffle": False, "clauses": [{"source": "raw", "weight": "1"}]},
    }
    assert same_settings(one, other, defaults)
    assert not same_settings(one, other)
    assert not same_settings(one, other | {"top_p": 0.9}, defaults)
    assert changes(one, other | {"top_p": 0.9}, defaults) == ["top_p 1.0 -> 0.9"]
