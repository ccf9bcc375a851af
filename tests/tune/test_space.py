import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.errors import UserError
from capmix.tune.halving import most_candidates, round_sizes
from capmix.tune.space import Span, candidates, defaults_in, parse_values, space_of


def test_values_are_read_as_ranges_and_lists() -> None:
    assert parse_values("0.05..0.9") == Span(0.05, 0.9)
    assert parse_values("-1e-3..2") == Span(-0.001, 2)
    assert parse_values("0.1,0.3") == [0.1, 0.3]
    assert parse_values("blip2, coca") == ["blip2", "coca"]
    assert space_of({"a": [0.1, 0.1, 0.3]}) == {"a": [0.1, 0.3]}
    assert space_of({"a": (0, 1), "b": "x"}) == {"a": Span(0, 1), "b": ["x"]}
    with pytest.raises(UserError, match="no values"):
        space_of({"a": []})


@given(st.integers(1, 30), st.integers(0, 5))
def test_a_range_is_drawn_once_per_part_and_a_list_equally_often(count: int, seed: int) -> None:
    space = {"fraction": Span(0.1, 0.9), "source": ["a", "b", "c"]}
    rows = candidates(space, count, seed)
    assert rows == candidates(space, count, seed)
    assert len(rows) <= count
    values = np.array([row["fraction"] for row in rows])
    assert ((values >= 0.1) & (values <= 0.9)).all()
    if len(rows) == count:  # no two became equal by rounding
        edges = 0.1 + 0.8 * np.arange(count + 1) / count
        assert all(
            ((values >= low - 1e-3) & (values <= high + 1e-3)).any()
            for low, high in itertools.pairwise(edges)
        )
        uses = [sum(row["source"] == one for row in rows) for one in "abc"]
        assert max(uses) - min(uses) <= 1


def test_lists_are_a_grid_or_a_part_of_it() -> None:
    space = {"fraction": [0.1, 0.2, 0.3], "source": ["a", "b"]}
    whole = candidates(space, 6, 0)
    assert len(whole) == 6
    some = candidates(space, 4, 0)
    assert [row for row in whole if row in some] == some
    assert {str(candidates(space, 4, seed)) for seed in range(9)} != {str(some)}


def test_defaults_are_the_recipes_numbers_and_the_first_of_other_values() -> None:
    space = {"fraction": Span(0.05, 0.9), "synthetic": ["b", "c"], "limit": [2.0]}
    known = {"fraction": 0.3, "synthetic": "mini", "limit": 1.0}
    assert defaults_in(space, known) == {"fraction": 0.3, "synthetic": "b", "limit": 2.0}


@given(st.integers(1, 6), st.integers(1, 2), st.integers(1, 300))
def test_the_largest_search_that_fits_is_planned(rounds: int, baselines: int, budget: int) -> None:
    def cost(count: int) -> int:
        return baselines * rounds + sum(round_sizes(count, rounds))

    try:
        count = most_candidates(budget, rounds, baselines)
    except UserError:
        assert cost(2) > budget
    else:
        assert cost(count) <= budget < cost(count + 1)


def test_half_of_the_candidates_remain_after_each_round() -> None:
    assert round_sizes(8, 3) == [8, 4, 2]
    assert round_sizes(5, 4) == [5, 3, 2, 1]
    assert most_candidates(20, 3, 2) == 8
