"""Scales over a pool equal NumPy's, and are exact in any order."""

import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix.recipe import Clause, Recipe
from capmix.mix.scale import Spread
from capmix.mix.select import matching

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def spread_of(values: list[float], at_once: int) -> Spread:
    array = np.array(values, np.float32)
    found = Spread()
    for start in range(0, len(array), at_once):
        found = found + Spread.of(array[start : start + at_once])
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(floats, min_size=1, max_size=30), st.integers(1, 30), st.randoms(use_true_random=False)
)
def test_mean_and_deviation_are_exact_for_any_batches_and_order(
    values: list[float], at_once: int, shuffler: random.Random
) -> None:
    found = spread_of(values, at_once)
    assert found.mean() == statistics.mean(values)
    assert found.deviation() == pytest.approx(statistics.pstdev(values), rel=1e-15)
    assert (found.least, found.most) == (min(values), max(values))
    shuffler.shuffle(values)
    assert spread_of(values, 7) == found


def test_the_deviation_is_numpys_population_deviation() -> None:
    values = np.random.default_rng(0).normal(0.25, 0.05, 100_000).astype(np.float32)
    found = Spread.of(values)
    wide = values.astype(np.float64)
    assert found.mean() == pytest.approx(wide.mean(), rel=1e-13)
    assert found.deviation() == pytest.approx(wide.std(), rel=1e-12)
    assert found.line("normalised") == (wide.min(), wide.max() - wide.min())
    assert found.line("zscore") == (found.mean(), found.deviation())


def test_missing_and_infinite_values_do_not_count() -> None:
    values = [np.nan, 1.0, np.inf, 3.0, -np.inf]
    assert spread_of(values, 2) == spread_of([1.0, 3.0], 2)
    assert Spread.of(np.array([np.nan], np.float32)).line("zscore") == (0.0, 1.0)


@pytest.mark.parametrize("function", ["normalised", "zscore"])
def test_a_constant_column_scales_to_zero(function: str) -> None:
    start, step = spread_of([0.1] * 9, 4).line(function)
    assert (float(np.float32(0.1)) - start) / step == 0


def pool(scores: list[float | None], shard: int = 3) -> HandMade:
    made = [
        Made(f"{i:032x}", f"raw {i}" * (i % 4 + 1), score, failed=i == 1)
        for i, score in enumerate(scores)
    ]
    starts = range(0, len(made), shard)
    return HandMade(fresh_folder(), {f"{s:05d}": made[s : s + shard] for s in starts})


def kept(here: HandMade, where: str) -> list[int]:
    recipe = Recipe(name="r", about="", clauses=[Clause(source="raw", where=where)])
    here.mix(recipe)
    rows = here.rows()
    here.store.remove_marker("subsets/out")
    return [int(row["uid"], 16) for row in rows]


def test_scales_are_over_the_samples_that_are_ok_and_null_for_missing_values() -> None:
    here = pool([0.1, 9.0, None, 0.3, 0.2, 0.5])  # sample 1 failed
    values = np.array([0.1, 0.3, 0.2, 0.5], np.float32).astype(np.float64)
    normalised = (values - values.min()) / (values.max() - values.min())
    zscores = (values - values.mean()) / values.std()
    numbers = np.array([0, 3, 4, 5])
    for limit in (0.2, 0.6):
        assert kept(here, f"normalised(raw_score) > {limit}") == [*numbers[normalised > limit]]
    assert kept(here, "zscore(raw_score) > 0") == [*numbers[zscores > 0]]
    assert kept(here, "zscore(raw_score) is null") == [2]


def test_a_threshold_of_a_sum_of_scales_is_that_of_the_plain_sum() -> None:
    draw = np.random.default_rng(3)
    scores = draw.normal(0.2, 0.1, 40).astype(np.float32)
    here = pool([float(one) for one in scores])
    some = np.delete(np.arange(40), 1)
    x = scores[some].astype(np.float64)
    y = np.array([len(f"raw {i}" * (i % 4 + 1)) for i in some], np.float64)
    both = (x - x.min()) / (x.max() - x.min()) / 2 + (y - y.mean()) / y.std()
    least = -np.sort(-both.astype(np.float32))[int(39 * 0.3)]
    where = "top(normalised(raw_score) / 2 + zscore(length(raw_text)), 0.3)"
    assert kept(here, where) == [*some[both.astype(np.float32) >= least]]


def test_equal_scales_of_two_clauses_with_other_thresholds_are_told_apart() -> None:
    here = pool([0.1, 0.0, 0.2, 0.3, 0.4])
    clauses = [
        Clause(source="raw", where="top(normalised(raw_score), 0.3)"),
        Clause(source="raw", where="top(-zscore(raw_score), 0.2)"),
    ]
    summary = here.mix(Recipe(name="r", about="", clauses=clauses))
    assert [int(row["uid"], 16) for row in here.rows()] == [0, 3, 4]
    assert set(summary.thresholds) == {
        "threshold(normalised(raw_score), 0.3)",
        "threshold((-(zscore(raw_score))), 0.2)",
    }


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("top(word_count(raw_text), 0.2)", [2, 3]),
        ("zscore(word_count(raw_text)) > 1", [3]),
        ("top(normalised(word_count(raw_text)) + raw_score, 0.2)", [2, 3]),
        ("raw_score > datacomp_threshold(word_count(raw_text), 0.2) - 3.75", [3, 4]),
    ],
)
def test_functions_of_capmix_work_inside_thresholds_and_scales(
    where: str, numbers: list[int]
) -> None:
    here = pool([0.1, 0.0, 0.2, 0.3, 0.4, 0.1])  # word counts 2, failed, 4, 5, 2, 3
    assert kept(here, where) == numbers


def test_a_condition_of_an_option_scales_over_the_whole_pool() -> None:
    here = pool([0.1, 0.0, 0.2, 0.3, 0.4, 0.5])
    shards = [one for one in here.pool.shards if one.name == "00003"]
    found = matching(here.store, here.pool, here.columns, "normalised(raw_score) > 0.6", shards)  # type: ignore[arg-type]
    ((_, table),) = found
    assert [int(uid, 16) for uid in table["uid"].to_pylist()] == [4, 5]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("zscore(raw_score, 1) > 0", r"expected zscore\(value\)"),
        ("normalised(zscore(raw_score)) > 0", "normalised cannot contain thresholds"),
        ("zscore(top(raw_score, 0.5)::INTEGER) > 0", "zscore cannot contain thresholds"),
        ("zscore(no_score) > 0", "no column 'no_score'"),
        ("zscore(raw_text) > 0", "recipe r: Conversion Error"),
    ],
)
def test_wrong_uses_are_one_line(where: str, error: str) -> None:
    with pytest.raises(UserError, match=error) as caught:
        kept(pool([0.1, 0.2, 0.3]), where)
    assert "\n" not in str(caught.value)


def test_a_template_cannot_contain_a_scale() -> None:
    clause = Clause(source="raw", text="{zscore(raw_score)} {raw}")
    with pytest.raises(UserError, match="zscore.* not supported in texts"):
        pool([0.1, 0.2, 0.3]).mix(Recipe(name="r", about="", clauses=[clause]))
