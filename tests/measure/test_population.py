from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import SCORER, HandMade, Made, fresh_folder

from capmix.measure.population import Population, levels_of, measure_population, read_sample
from capmix.measure.settings import MeasureSettings
from capmix.mix.recipe import Clause, Recipe


def hand_made(count: int = 40, shards: int = 2) -> HandMade:
    random = np.random.default_rng(1)
    made: dict[str, list[Made]] = {f"{i:05d}": [] for i in range(shards)}
    for i in range(count):
        score = None if i % 7 == 0 else round(float(random.random()) / 2, 3)
        sample = Made(
            f"{i:032x}",
            f"raw text number {i % 9}" if i % 11 else None,
            score,
            {"mini": [f"a {i} of caption"]},
            {"mini": [round(float(random.random()), 3)]},
            failed=i == 5,
        )
        made[f"{i % shards:05d}"].append(sample)
    return HandMade(fresh_folder(), made)


def measured(here: HandMade, **asked: Any) -> dict[str, Any]:
    sources = ["raw", *here.captioned]
    population = Population(
        here.store,
        here.pool,
        SCORER,
        sources,
        sources,
        MeasureSettings(**asked),  # type: ignore[arg-type]
    )
    return measure_population(population)


def test_all_samples_that_are_ok_are_measured() -> None:
    found = measured(hand_made())
    assert found["samples"] == 39  # one failed
    raw, mini = found["sources"]["raw"], found["sources"]["mini"]
    assert raw["texts"] == 39 - 4  # samples 0, 11, 22 and 33 have no text
    assert raw["unique_texts"] == 9
    assert mini["unique_texts"] == 39
    # Samples 0, 7, ..., 35 have no score; 11, 22 and 33 have no text, so their scores are ignored.
    assert raw["noise"]["scored"] == 39 - 6 - 3
    assert raw["truncated"] == 0
    assert found["agreement"][0]["samples"] == 30


def test_shards_and_their_order_do_not_matter() -> None:
    one, many = measured(hand_made(shards=1)), measured(hand_made(shards=5))
    assert one["sources"]["mini"]["curve"] == many["sources"]["mini"]["curve"]
    assert one["sources"]["raw"]["noise"] == many["sources"]["raw"]["noise"]
    assert one["steps"]["cells"] == many["steps"]["cells"]


def test_the_sample_is_of_the_lowest_draws_whatever_the_shards() -> None:
    one, many = hand_made(shards=1), hand_made(shards=5)
    for here in (one, many):
        measured(here, sample=20)
    uids = read_sample(one.store)["uid"].to_pylist()
    assert uids == read_sample(many.store)["uid"].to_pylist()
    assert 8 < len(uids) < 32
    draws = read_sample(one.store)["draw"].to_pylist()
    assert draws == sorted(draws)
    assert max(draws) < 20 / 40
    measured(one, sample=20, seed=1)
    assert read_sample(one.store)["uid"].to_pylist() != uids


def test_what_is_up_to_date_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here = hand_made()
    first = measured(here)
    monkeypatch.setattr("capmix.measure.population._measure", None)
    assert measured(here)["sources"] == first["sources"]


def test_levels_are_nested_sizes() -> None:
    assert levels_of(12_000) == [300, 1_000, 3_000, 10_000, 12_000]
    assert levels_of(300) == [300]
    assert levels_of(5) == [5]


SCORE = st.none() | st.integers(-40, 40).map(lambda i: i / 40)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=30),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_steps_keep_what_a_recipe_with_these_thresholds_keeps(
    scores: list, raw_at: int, mini_at: int
) -> None:
    """The counts under the report's sliders equal those of `capmix mix` on the recipe."""
    made = [
        Made(f"{i:032x}", "x", raw, {"mini": ["y"]}, {"mini": [mini]})
        for i, (raw, mini) in enumerate(scores)
    ]
    here = HandMade(fresh_folder(), {"00000": made})
    steps = measured(here)["steps"]
    if steps is None or steps["scale"] == 1:
        return
    known = sorted({c for cell in steps["cells"] for c in cell[:2] if c is not None})
    if not known:
        return
    at = [known[raw_at % len(known)], known[mini_at % len(known)]]
    kept = {"raw": 0, "mini": 0}
    for raw, mini, count in steps["cells"]:
        if raw is not None and raw >= at[0]:
            kept["raw"] += count
        elif mini is not None and mini >= at[1]:
            kept["mini"] += count
    digits = len(str(steps["scale"])) - 1
    values = [f"{step * steps['unit'] / steps['scale']:.{digits}f}" for step in at]
    clauses = [
        Clause(source=source, where=f"{source}_score >= {value}")
        for source, value in zip(("raw", "mini"), values, strict=True)
    ]
    if not sum(kept.values()):
        return
    here.mix(Recipe(name="out", about="", clauses=clauses))
    rows = here.rows()
    assert {s: sum(row["source"] == s for row in rows) for s in kept} == kept


def test_a_score_without_a_text_counts_for_nothing() -> None:
    """Scores without a text can be imported, but no recipe uses such a row."""
    made = [Made("a" * 8, None, 0.4), Made("b" * 8, "a text", 0.3)]
    found = measured(HandMade(fresh_folder(), {"00000": made}))
    assert found["sources"]["raw"]["noise"]["scored"] == 1
    assert sum(cell[-1] for cell in found["steps"]["cells"] if cell[0] is not None) == 1
