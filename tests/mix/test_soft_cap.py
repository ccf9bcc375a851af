"""Batches without replacement, compared with exact probabilities and with a plain loop."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.mix import soft_cap
from capmix.mix.sampling import CapRules
from capmix.mix.soft_cap import CapSampler, RandomStream, draw_batches

Use = Callable[[CapSampler], None]
TRIALS = 1200


def times_of(logits: np.ndarray, rules: CapRules, seed: int, use: Use | None = None) -> np.ndarray:
    sampler = CapSampler(logits, rules.penalty, rules.cap)
    if use is not None:
        use(sampler)
    assert sum(draw_batches(sampler, rules, seed)) == sampler.times.sum()
    return sampler.times


def exact(logits: list[float], rules: CapRules) -> dict[tuple[int, ...], float]:
    """Return the probability of each result, by enumerating every order of every batch."""
    states = {(0,) * len(logits): 1.0}
    for _ in range(rules.draws // rules.batch):
        after: dict[tuple[int, ...], float] = {}
        for times, share in states.items():
            gone = [rules.cap is not None and one >= rules.cap for one in times]
            rates = [
                0.0 if left else math.exp(logit - rules.penalty * one)
                for logit, one, left in zip(logits, times, gone, strict=True)
            ]
            for order in itertools.permutations(range(len(logits)), rules.batch):
                chance, rest = share, sum(rates)
                for item in order:
                    chance *= rates[item] / rest if rates[item] else 0.0
                    rest -= rates[item]
                reached = tuple(one + (i in order) for i, one in enumerate(times))
                after[reached] = after.get(reached, 0.0) + chance
        states = {one: share for one, share in after.items() if share > 0}
    return states


def is_likely(found: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> bool:
    """Whether chi-square is within five standard deviations of its mean."""
    assert set(found) <= set(expected)
    total = found.total()
    rare = sum(share for share in expected.values() if share * total < 5)
    shares = [(found[one], s) for one, s in expected.items() if s * total >= 5]
    if rare * total >= 5:
        shares.append((total - sum(count for count, _ in shares), rare))
    freedom = len(shares) - 1
    chi = sum((count - s * total) ** 2 / (s * total) for count, s in shares)
    return chi < freedom + 5 * math.sqrt(2 * freedom)


def with_log_time(value: float) -> Use:
    """Build the table as if the last batch had taken this long: +inf gives every item its own
    clock, -inf none."""

    def use(sampler: CapSampler) -> None:
        sampler._log_time = value

    return use


@pytest.fixture(params=["own clocks", "shared clock", "both", "old table", "new clocks"])
def use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Every way through the sampler, which must not change any probability."""
    monkeypatch.setattr(soft_cap, "ALL_CLOCKS", 0)
    if request.param == "old table":
        monkeypatch.setattr(soft_cap, "LEAST_USED", 0.0)
        monkeypatch.setattr(soft_cap, "LEAST_BLOCK", 3)
    if request.param == "new clocks":
        monkeypatch.setattr(soft_cap, "MOST_RINGS", 1)
        monkeypatch.setattr(soft_cap, "LEAST_BLOCK", 1)
    times = {"own clocks": 99.0, "both": -1.0}
    return with_log_time(times.get(request.param, -99.0))


def test_pairs_of_four_items_have_their_exact_probabilities() -> None:
    logits, rules = [0.0, 0.5, 1.0, 2.0], CapRules(2, 2, 0.15)
    expected = exact(logits, rules)
    assert len(expected) == 6
    assert sum(expected.values()) == pytest.approx(1)
    rates = np.exp(logits)
    shares = rates / rates.sum()
    by_hand = shares[0] * rates[1] / (rates.sum() - rates[0])
    by_hand += shares[1] * rates[0] / (rates.sum() - rates[1])
    assert expected[1, 1, 0, 0] == pytest.approx(by_hand)
    found = Counter(tuple(times_of(np.array(logits), rules, seed)) for seed in range(TRIALS))
    assert is_likely(found, expected)


@pytest.mark.parametrize("cap", [None, 2])
def test_three_batches_have_their_exact_probabilities(use: Use, cap: int | None) -> None:
    logits, rules = [-0.5, 0.0, 0.4, 1.0, 2.5], CapRules(6, 2, 0.7, cap)
    found = Counter(tuple(times_of(np.array(logits), rules, seed, use)) for seed in range(TRIALS))
    assert is_likely(found, exact(logits, rules))


def test_the_check_notices_a_wrong_penalty() -> None:
    logits = [-0.5, 0.0, 0.4, 1.0, 2.5]
    rules, other = CapRules(6, 2, 0.7), CapRules(6, 2, 0.4)
    found = Counter(tuple(times_of(np.array(logits), other, seed)) for seed in range(TRIALS))
    assert not is_likely(found, exact(logits, rules))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_many_batches_agree_with_a_plain_loop(scale: float) -> None:
    """The mean number of draws of each tenth of the items, by logit, over some seeds."""
    draw = np.random.default_rng(7)
    logits = np.sort(scale * draw.normal(0.25, 0.06, 2000)).astype(np.float32)
    rules = CapRules(3000, 50, 0.15)
    ours, plain = [], []
    for seed in range(25):
        ours.append(times_of(logits, rules, seed).reshape(10, -1).sum(1))
        now, times = logits.astype(np.float64), np.zeros(2000)
        for _ in range(60):
            rates = np.exp(now - now.max())
            batch = draw.choice(2000, 50, replace=False, p=rates / rates.sum())
            times[batch] += 1
            now[batch] -= 0.15
        plain.append(times.reshape(10, -1).sum(1))
    difference = np.mean(ours, 0) - np.mean(plain, 0)
    spread = np.sqrt((np.var(ours, 0) + np.var(plain, 0)) / 24) + 0.1
    assert np.abs(difference / spread).max() < 4.5


def test_a_large_penalty_takes_turns_and_a_cap_ends() -> None:
    """By hand: with a penalty of 1000, an item is drawn again after all others; with a cap of 2,
    three items are drawn six times."""
    logits = np.array([0.0, 1.0, 2.0])
    assert times_of(logits, CapRules(6, 1, 1000.0), 0).tolist() == [2, 2, 2]
    assert times_of(logits, CapRules(100, 1, 0.0, 2), 0).tolist() == [2, 2, 2]
    assert times_of(logits, CapRules(100, 2, 0.0, 2), 0).tolist() == [2, 2, 2]


def test_logits_far_apart_are_drawn_in_order() -> None:
    """exp(-100,000) is 0 in floating point; the items must still be drawn, and best first."""
    logits = -1e5 * np.arange(1000)
    times = times_of(logits, CapRules(300, 3, 0.0, 1), 1)
    assert np.flatnonzero(times).tolist() == list(range(300))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300),
    st.integers(1, 400),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.15, 50.0]),
    st.sampled_from([None, 1, 3]),
)
def test_each_batch_draws_its_size_once(
    logits: list[float], draws: int, batch: int, penalty: float, cap: int | None
) -> None:
    rules = CapRules(draws, batch, penalty, cap)
    sampler = CapSampler(np.array(logits, np.float32), penalty, cap)
    before, total = sampler.times.copy(), 0
    for size in draw_batches(sampler, rules, 3):
        more = sampler.times - before
        assert set(np.unique(more).tolist()) <= {0, 1}
        assert more.sum() == size <= batch
        assert cap is None or sampler.times.max() <= cap
        assert sampler.alive == (len(logits) if cap is None else (sampler.times < cap).sum())
        before, total = sampler.times.copy(), total + size
    most = draws if cap is None else min(draws, cap * len(logits))
    assert total == most


def test_random_numbers_are_those_of_philox() -> None:
    stream = RandomStream(5, 2)
    first, second = stream.uniform(1000), stream.uniform(1000)
    assert (RandomStream(5, 2).uniform(2000) == np.concatenate([first, second])).all()
    assert first.min() > 0
    assert first.max() < 1
    assert (RandomStream(5, 3).uniform(1000) != first).all()
