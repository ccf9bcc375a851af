import numpy as np
import pytest
from scipy.stats import t as student

from capmix.probe.evaluate import ProbeResult
from capmix.report.compare import compare
from capmix.report.differences import of_probes, of_runs
from capmix.report.seeds import error_of_means, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 20, 145])
def test_the_t_quantile_is_scipys(freedom: int) -> None:
    for share in (0.975, 0.9995, 0.99999):
        assert np.isclose(t_quantile(share, freedom), student.ppf(share, freedom), rtol=1e-7)


def probes(rates: dict[str, float], seeds: int, spread: float = 0.0) -> dict[str, list]:
    """Results of one set with 200 items; `spread` is that of the rates over seeds."""
    found: dict[str, list] = {}
    random = np.random.default_rng(0)
    for name, rate in rates.items():
        of_seeds = [rate + spread * random.normal() for _ in range(seeds)]
        hits = [random.random(200) < one for one in of_seeds]
        found[name] = [ProbeResult(name, {"s": {"acc1": 0.0}}, {"s/acc1": one}) for one in hits]
    return found


def test_probes_are_clear_of_each_other_by_both_kinds_of_chance() -> None:
    """Against a plain computation, pair by pair."""
    rows = compare(probes({"raw": 0.2, "mini": 0.5, "mix": 0.52}, 4), "raw")
    found = of_probes(rows)
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    by_seed = np.array([row.by_seed for row in rows])
    rest = by_seed - by_seed.mean(1)[:, None] - by_seed.mean(0) + by_seed.mean()
    error = np.sqrt(2 * (rest**2).sum() / 6 / 4)
    greatest = np.zeros(1000)
    for a, b in pairs:
        drawn, mean = a.resamples - b.resamples, a.average.mean - b.average.mean
        greatest = np.maximum(greatest, np.abs(drawn - mean) / drawn.std(ddof=1))
    critical = np.quantile(greatest, 0.95)
    for a, b in pairs:
        drawn, mean = a.resamples - b.resamples, a.average.mean - b.average.mean
        change = found.of(a.name, b.name)
        half = student.ppf(0.975, 6) * error
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert np.allclose(
            [change.mean, change.low, change.high],
            [mean, min(low, mean - half), max(high, mean + half)],
        )
        assert change.is_clear == (
            abs(mean) > critical * drawn.std(ddof=1)
            and abs(mean) > student.ppf(1 - 0.025 / 3, 6) * error
        )
    assert found.of("mini", "raw").is_clear
    assert not found.of("mix", "mini").is_clear
    against = {row.name: row.against_baseline for row in rows}
    assert against["mini"] is not None
    assert np.isclose(against["mini"].low, found.of("mini", "raw").low)


def test_chance_of_few_seeds_is_not_found_by_a_bootstrap_alone() -> None:
    """Ten pools of equal recipes whose probes differ by seed far more than by test item."""
    clear = bare = 0
    for draw in range(10):
        random = np.random.default_rng(draw)
        results = {
            name: [
                ProbeResult(name, {"s": {"acc1": 0.0}}, {"s/acc1": random.random(400) < rate})
                for rate in 0.5 + 0.1 * random.normal(size=3)
            ]
            for name in "abcd"
        }
        rows = compare(results, "a")
        clear += of_probes(rows).clear.any()
        alone = [row.resamples - rows[0].resamples for row in rows[1:]]
        bare += any(not np.quantile(one, 0.025) <= 0 <= np.quantile(one, 0.975) for one in alone)
    assert clear <= 1
    assert bare >= 4


def test_one_seed_has_intervals_over_items_and_says_so() -> None:
    found = of_probes(compare(probes({"raw": 0.2, "mini": 0.5}, 1), "raw"))
    assert found.about == "95 % bootstrap intervals over test items, not seeds"
    assert found.of("mini", "raw").is_clear


def test_runs_are_paired_by_seed() -> None:
    """A seed that is worse for both does not widen the interval of their difference."""
    averages = {
        "raw": {0: 10.0, 1: 12.0, 2: 14.2},
        "mini": {0: 13.0, 1: 15.1, 2: 17.0, 3: 30.0},
    }
    found = of_runs(averages)
    change = found.of("mini", "raw")
    paired = np.array([3.0, 3.1, 2.8])
    half = student.ppf(0.975, 2) * paired.std(ddof=1) / np.sqrt(3)
    assert np.allclose(
        [change.mean, change.low, change.high],
        [paired.mean(), paired.mean() - half, paired.mean() + half],
    )
    assert change.is_clear
    assert found.about == "95 % t intervals over 3 training seeds, paired by seed"


def test_with_one_seed_nothing_is_tested() -> None:
    found = of_runs({"raw": {0: 10.0}, "mini": {0: 30.0}})
    change = found.of("mini", "raw")
    assert (change.mean, change.low, change.high, change.is_clear) == (20.0, None, None, False)
    assert not found.tested


def test_errors_of_means_are_pooled_over_recipes() -> None:
    found = error_of_means({"a": [1.0, 3.0], "b": [5.0, 9.0]})
    assert found is not None
    assert found.freedom == 2
    assert np.isclose(found.error, np.sqrt((2 + 8) / 2 / 2))
    assert error_of_means({"a": [1.0]}) is None
