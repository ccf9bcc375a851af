"""`--where` selects the same samples as a plain filter over the parts."""

from collections.abc import Sequence
from typing import Any

import pytest
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix.select import matching, names_in

SAMPLES = [
    Made("a" * 32, raw=None, captions={"m": ["x"]}, scores={"m": [0.5]}),
    Made("b" * 32, raw="b", raw_score=0.1, captions={"m": ["y"]}, scores={"m": [0.2]}),
    Made("c" * 32, failed=True),
    Made("d" * 32, raw="d", raw_score=0.9),
    Made("e" * 32, raw=None, size=(500, 100)),
]


@pytest.fixture(scope="module")
def here() -> HandMade:
    return HandMade(fresh_folder(), {"00000": SAMPLES[:3], "00001": SAMPLES[3:]})


def chosen(here: HandMade, expression: str, shards: Sequence[int] | None = None) -> Any:
    pool: Any = here.pool
    only = None if shards is None else [pool.shards[i] for i in shards]
    found = matching(here.store, pool, here.columns, expression, only)
    return {shard.name: "".join(u[0] for u in t["uid"].to_pylist()) for shard, t in found}


@pytest.mark.parametrize(
    ("expression", "first", "second"),
    [
        ("true", "ab", "de"),
        ("raw_text is null", "a", "e"),
        ("raw_score < 0.5", "b", ""),
        ("m_score > 0.3 or width = 500", "a", "e"),
        ("top(raw_score, 0.1)", "", "d"),
        ("key = 'dddddddddddddddddddddddddddddddd'", "", "d"),
        ("shard = '00001' and draw >= 0", "", "de"),
    ],
)
def test_a_condition_chooses_ok_samples_shard_by_shard(
    here: HandMade, expression: str, first: str, second: str
) -> None:
    assert chosen(here, expression) == {"00000": first, "00001": second}
    assert chosen(here, expression, [1]) == {"00001": second}


def test_the_names_of_a_condition_are_known_before_its_columns() -> None:
    assert names_in("field.url is null or top(raw_score, 0.3)") == {"field.url", "raw_score"}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("widht > 5", r"--where 'widht > 5': no column 'widht'; .*did you mean 'width'"),
        ("width >", r"--where 'width >': syntax error"),
        ("random() < 0.5", r"--where 'random\(\) < 0.5': no function 'random'"),
        ("width = 'wide'", r"--where .*: Conversion Error"),
        ("width.x > 1", r"no column 'width.x'"),
    ],
)
def test_a_condition_that_cannot_be_used_is_named(
    here: HandMade, expression: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen(here, expression)
