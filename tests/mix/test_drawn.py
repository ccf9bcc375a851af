"""Recipes that draw their rows: which rows, how often, and what is counted."""

import hashlib
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.mix.mix import DEFAULTS
from capmix.mix.recipe import Clause, Recipe, load_recipe
from capmix.mix.sampling import Sampling
from capmix.mix.soft_cap import RandomStream
from capmix.storage.compare import same_settings

Row = tuple[str, str, int]


def made(count: int, seed: int = 0) -> list[Made]:
    draw = np.random.default_rng(seed)
    found = []
    for i in range(count):
        raw, mini = (float(np.float32(one)) for one in draw.normal(0.25, 0.06, 2))
        uid = hashlib.md5(f"{seed}/{i}".encode()).hexdigest()
        captions, scores = {"mini": [f"mini {i}"]}, {"mini": [mini]}
        found.append(Made(uid, f"raw {i}", raw, captions, scores, sha256=f"{i % 5:064x}"))
    return found


def work(samples: list[Made], size: int = 7) -> HandMade:
    starts = range(0, len(samples), size)
    shards = {f"{i:05d}": samples[s : s + size] for i, s in enumerate(starts)}
    return HandMade(fresh_folder(), shards)


def recipe(clauses: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
    sample = {"draw": "10x", "batch": 5, "logit": "20 * score"} | changes.pop("sample", {})
    given = {"name": "mine", "about": "", "clauses": clauses or [{"source": "raw"}]}
    return Recipe.model_validate(given | {"sample": sample} | changes).filled()


def weights(here: HandMade, name: str = "out") -> dict[Row, int]:
    return {(row["uid"], row["source"], row["k"]): row["weight"] for row in here.rows(name)}


def test_one_batch_has_the_rows_whose_clocks_ring_first() -> None:
    """Recomputed from the definition: row i, in the order of md5(uid), gets the i-th exponential
    number; the rows with the smallest log(exponential) - logit are drawn."""
    samples = made(30)
    here = work(samples)
    summary = here.mix(recipe(sample={"draw": 8, "batch": 8}), seed=4)
    samples.sort(key=lambda one: hashlib.md5(one.uid.encode()).digest())
    clocks = RandomStream(4, 0).exponential(30)
    keys = [
        math.log(clock) - float(np.float32(20 * np.float32(one.raw_score or 0)))
        for clock, one in zip(clocks, samples, strict=True)
    ]
    first = sorted(range(30), key=keys.__getitem__)[:8]
    assert weights(here) == {(samples[i].uid, "raw", 0): 1 for i in first}
    assert summary.dropped == {"not drawn": 22}
    assert summary.drawn == {
        "asked": 8, "drawn": 8, "candidates": 30, "batch": 8, "batches": 1
    }  # fmt: skip


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 30), st.integers(1, 9), st.randoms(use_true_random=False))
def test_shards_their_order_and_the_engine_do_not_matter(
    size: int, other: int, chance: Any
) -> None:
    samples = made(25)
    mine = recipe([{"source": "raw"}, {"source": "mini"}], keep="all", sample={"draw": 120})
    one = work(samples, size)
    one.mix(mine)
    chance.shuffle(samples)
    two = work(samples, other)
    two.mix(mine, workers=2)
    assert weights(one) == weights(two)
    assert sum(weights(one).values()) == 120


def test_the_seed_changes_the_rows_and_nothing_else_does() -> None:
    here = work(made(40))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        here.mix(recipe(), name, seed=seed)
    files = [Path(here.store.path(f"subsets/{name}.parquet")).read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert sum(weights(here, "a").values()) == sum(weights(here, "c").values()) == 400


def test_weights_copies_and_the_list_of_uids_add_up() -> None:
    here = work(made(20))
    clauses = [{"source": "raw"}, {"source": "mini"}]
    summary = here.mix(recipe(clauses, keep="all", sample={"draw": "5x", "batch": 7}), npy=True)
    rows = here.rows()
    assert sum(row["weight"] for row in rows) == 100 == summary.drawn["drawn"]
    copies: dict[str, int] = {}
    for row in rows:
        assert row["copy"] == copies.get(row["uid"], 0)
        copies[row["uid"]] = row["copy"] + row["weight"]
    pairs = np.load(here.store.path("subsets/out.npy"))
    listed = [f"{upper:016x}{lower:016x}" for upper, lower in pairs.tolist()]
    assert listed == sorted(uid for uid, times in copies.items() for _ in range(times))
    assert summary.rows_in == 20 == len(copies) + sum(summary.dropped.values())


def test_higher_scores_are_drawn_more_often_and_the_penalty_evens_out() -> None:
    samples = made(200)
    here = work(samples, 50)
    best = sorted(samples, key=lambda one: -(one.raw_score or 0))[:50]
    shares = []
    for name, penalty in (("free", 0), ("soft", 0.15), ("even", 10)):
        here.mix(recipe(sample={"batch": 10, "penalty": penalty, "logit": "30 * score"}), name)
        found = weights(here, name)
        shares.append(sum(found.get((one.uid, "raw", 0), 0) for one in best) / 2000)
    assert shares[0] > shares[1] + 0.1
    assert shares[1] > shares[2] + 0.1
    assert shares[2] == pytest.approx(0.25, abs=0.01)


def test_rows_without_a_logit_are_left_out_and_counted() -> None:
    samples = made(20)
    samples[3] = Made("3" * 32, "raw", None)
    samples[4] = Made("4" * 32, None, None)
    here = work(samples)
    logit = "case when raw_score > 0.25 then 1 / (raw_score - raw_score) else raw_score end"
    high = sum((one.raw_score or 0) > 0.25 for one in samples)
    summary = here.mix(recipe(sample={"logit": logit, "draw": 1000, "batch": 999}))
    assert summary.dropped == {"no clause holds": 1, "no logit": high + 1}
    assert summary.drawn["candidates"] == summary.kept == 18 - high
    with pytest.raises(UserError, match="sample: none of 19 rows has a logit"):
        here.mix(recipe(sample={"logit": "null"}))


def test_a_cap_that_is_reached_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    here = work(made(10))
    capped = recipe(sample={"cap": 2, "draw": 50, "batch": 3})
    with caplog.at_level(logging.WARNING):
        summary = here.mix(capped)
    assert summary.shortages() == ["20 of 50 rows are drawn: all 10 rows reached the cap"]
    assert "20 of 50 rows are drawn" in caplog.text
    assert set(weights(here).values()) == {2}
    with pytest.raises(UserError, match=r"20 of 50 rows are drawn: .*\(--strict\)"):
        here.mix(capped, "other", strict=True)
    assert not Path(here.store.path("subsets/other.parquet")).exists()
    with pytest.raises(UserError, match=r"20 of 50 rows are drawn: .*\(--strict\)"):
        here.mix(capped, strict=True)  # up to date


def test_a_batch_that_draws_everything_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    here = work(made(10))
    with caplog.at_level(logging.WARNING):
        summary = here.mix(load_recipe("soft-cap"))
    assert "each batch of up to 100,000 draws all 10 rows" in caplog.text
    assert "  100 drawn of 10 in 1 batches of up to 100,000" not in summary.lines()
    assert summary.drawn["batches"] == 10


@pytest.mark.parametrize("name", ["soft-cap", "hard-cap"])
def test_the_shipped_recipes_draw_ten_times_the_pool(name: str) -> None:
    here = work(made(100), 40)
    parameters = {"batch": 7, "scale": 10} | ({"cap": 12} if name == "hard-cap" else {})
    summary = here.mix(load_recipe(name, parameters))
    times = np.array(list(weights(here, "out").values()))
    assert times.sum() == 1000 == summary.drawn["drawn"]
    assert name == "soft-cap" or times.max() <= 12


def test_distinct_samples_are_drawn() -> None:
    here = work(made(20))
    summary = here.mix(recipe(distinct="sha256", sample={"draw": 30, "batch": 2}))
    assert len({uid for uid, _, _ in weights(here)}) <= 5
    assert summary.drawn["candidates"] == 5
    assert summary.dropped["repeats an earlier sha256"] == 15


def test_a_threshold_may_be_part_of_the_logit() -> None:
    here = work(made(40))
    here.mix(recipe(sample={"logit": "score - threshold(raw_score, 0.5)", "draw": 9}))
    assert sum(weights(here).values()) == 9


def test_a_scale_may_be_part_of_the_logit() -> None:
    """zscore only shifts and stretches: the same rows as with its line written out."""
    samples = made(40)
    here = work(samples)
    here.mix(recipe(sample={"logit": "zscore(raw_score) + normalised(score)"}), "scaled")
    scores = np.array([one.raw_score for one in samples], np.float64)
    low, step = scores.min(), scores.max() - scores.min()
    written = (
        f"(score::DOUBLE - {scores.mean()!r}) / {scores.std()!r}"
        f" + (score::DOUBLE - {low!r}) / {step!r}"
    ).replace("np.float64", "")
    here.mix(recipe(sample={"logit": written}), "written")
    assert weights(here, "scaled") == weights(here, "written")


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"draw": "many"}, "draw 'many': expected a whole number above 0, or a multiple"),
        ({"draw": 0}, "draw '0'"),
        ({"draw": "0x"}, "draw '0x'"),
        ({"draw": 1.5}, "draw '1.5'"),
        ({"draw": float("nan")}, "draw 'nan'"),
        ({"draw": 10**13}, "draw '1"),
        ({"batch": -1}, "batch '-1'"),
        ({"penalty": -0.1}, "penalty '-0.1': expected a number of at least 0"),
        ({"penalty": "inf"}, "penalty 'inf'"),
        ({"cap": "10x"}, "cap '10x': expected a whole number above 0, or none"),
        ({"draw": "{rows}"}, "no parameter 'rows'"),
    ],
)
def test_a_faulty_number_is_named(sample: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipe(sample=sample)
    assert "\n" not in str(caught.value)


def test_faulty_uses_are_named() -> None:
    here = work(made(10))
    with pytest.raises(ValueError, match="sample cannot be combined with weight"):
        recipe([{"source": "raw", "weight": "2"}])
    with pytest.raises(UserError, match="need 20,000 batches; at most 10,000"):
        here.mix(recipe(sample={"draw": 20_000, "batch": 1}))
    with pytest.raises(UserError, match="200,000 rows in batches of 10 need 20,000 batches"):
        here.mix(recipe(sample={"draw": 200_000, "batch": 100_000}))
    with pytest.raises(UserError, match="no column 'nothing'"):
        here.mix(recipe(sample={"logit": "nothing"}))
    here.columns = {name: one for name, one in here.columns.items() if "mini_score" not in name}
    with pytest.raises(UserError, match="mini.*score"):
        here.mix(recipe([{"source": "mini"}]))


def test_multiples_and_numbers() -> None:
    rules = Sampling(draw="2.5x", batch="0.1x", cap="3").rules(101)
    assert (rules.draws, rules.batch, rules.penalty, rules.cap) == (252, 10, 0.15, 3)
    rules = Sampling(draw="128000000.0", batch=100_000, penalty=0).rules(5)  # type: ignore[arg-type]
    assert (rules.draws, rules.batch, rules.penalty, rules.cap) == (128_000_000, 100_000, 0.0, None)


@pytest.mark.parametrize("draw", [30, 30.0])
def test_a_number_of_rows_has_no_decimals_in_the_name(draw: float) -> None:
    """The command line and files give every number as a float."""
    found = load_recipe("soft-cap", {"draw": draw, "scale": 2.5})
    assert found.name == "soft-cap-30-raw"
    assert found.sample is not None
    assert (found.sample.draw, found.sample.logit) == ("30", "2.5 * score")
    older = load_recipe("cliploss-normsim", {"normsim_at_least": 1.0})  # names of subsets stay
    assert older.name == "raw-top30-cliploss-normsim1.0"


def test_older_recipes_have_the_same_settings_as_before() -> None:
    """A subset of an older capmix, whose recipe has no `sample`, stays up to date."""
    plain = Recipe(name="plain", about="", clauses=[Clause(source="raw")]).model_dump()
    older = {name: value for name, value in plain.items() if name != "sample"}
    assert same_settings({"recipe": older}, {"recipe": plain}, DEFAULTS)
    assert not same_settings({"recipe": older}, {"recipe": recipe().model_dump()}, DEFAULTS)
