from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from capmix.probe.evaluate import ProbeResult
from capmix.report.compare import RecipeResult, compare
from capmix.report.differences import of_probes, of_runs
from capmix.report.seeds import error_of_differences, error_of_means, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 20, 145])
def test_the_t_quantile_is_scipys(freedom: int) -> None:
    for share in (0.975, 0.9995, 0.99999):
        assert np.isclose(t_quantile(share, freedom), student.ppf(share, freedom), rtol=1e-7)


def probe(seed: int, hits: np.ndarray) -> ProbeResult:
    return ProbeResult(f"probe_results/x/seed{seed}", {"s": {"acc1": 0.0}}, {"s/acc1": hits})


def probes(rates: dict[str, float], seeds: int, spread: float = 0.0) -> dict[str, list]:
    """Return results on one set with 200 items; `spread` is the deviation of rates over seeds."""
    found: dict[str, list] = {}
    random = np.random.default_rng(0)
    for name, rate in rates.items():
        of_seeds = [rate + spread * random.normal() for _ in range(seeds)]
        hits = [random.random(200) < one for one in of_seeds]
        found[name] = [probe(seed, one) for seed, one in enumerate(hits)]
    return found


def test_probes_are_clear_of_each_other_by_both_kinds_of_chance() -> None:
    """Compare with a straightforward computation, pair by pair."""
    rows = compare(probes({"raw": 0.2, "mini": 0.5, "mix": 0.52}, 4), "raw")
    found = of_probes(rows)
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[:i]]
    by_seed = np.array([list(row.by_seed.values()) for row in rows])
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
    """Ten pools of equal recipes whose probes vary far more between seeds than between items."""
    clear = bare = 0
    for draw in range(10):
        random = np.random.default_rng(draw)
        results = {
            name: [
                probe(seed, random.random(400) < rate)
                for seed, rate in enumerate(0.5 + 0.1 * random.normal(size=3))
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
    assert found.about == "95% bootstrap intervals over test items, not seeds"
    assert found.of("mini", "raw").is_clear


def test_a_recipe_with_one_seed_leaves_the_seed_test_of_the_others() -> None:
    """Three pools of equal recipes whose probes vary far more between seeds than between items."""
    for draw in range(3):
        random = np.random.default_rng(draw)
        results = {
            name: [
                probe(seed, random.random(400) < rate)
                for seed, rate in enumerate(0.5 + 0.1 * random.normal(size=3))
            ]
            for name in "abc"
        }
        before = of_probes(compare(results, "a"))
        results["single"] = [probe(0, random.random(400) < 0.5)]
        rows = compare(results, "a")
        after = of_probes(rows)
        assert before.low is not None
        assert after.low is not None
        assert np.array_equal(before.low, after.low[:3, :3])
        assert not after.clear[:3, :3].any()
        assert after.about == (
            "95% bootstrap intervals over training seeds and test items (recipes with one "
            "seed use the seed error of the others)"
        )
        within = np.concatenate([np.subtract(v, np.mean(v)) for v in map(values_of, rows[:3])])
        error = np.sqrt((within**2).sum() / 6 * (1 + 1 / 3))
        assert after.of("single", "a").high - after.of("single", "a").mean > 2.4 * error


def values_of(row: RecipeResult) -> list[float]:
    return list(row.by_seed.values())


def test_the_error_of_a_pair_depends_on_its_own_seeds() -> None:
    values = {
        "a": {0: 1.0, 1: 2.0, 2: 3.3},
        "b": {0: 2.0, 1: 3.2, 2: 4.0},
        "c": {0: 1.0},
        "d": {0: 9.0},
        "e": {5: 9.0, 6: 9.5, 7: 9.9},
    }
    found = error_of_differences({name: values[name] for name in "abcd"})
    assert found is not None
    rest = np.array([1.0, 1.2, 0.7]) - np.mean([1.0, 1.2, 0.7])
    squares = float((rest**2).sum()) / 2
    paired = student.ppf(0.975, 2) * np.sqrt(squares / 2)
    assert np.isclose(found.half(values["a"], values["b"]), paired * np.sqrt(2 / 3))
    assert np.isclose(found.half(values["c"], values["d"]), paired * np.sqrt(2))
    within = sum(np.var(list(values[name].values())) * 3 for name in "ab")
    freedom = int(within**2 / (squares**2 / 2 + (within - squares) ** 2 / 2))
    assert freedom == 2
    apart = student.ppf(0.975, freedom) * np.sqrt(within / 4)
    assert np.isclose(found.half(values["a"], values["c"]), apart * np.sqrt(1 / 3 + 1))
    assert np.isclose(found.half(values["a"], values["e"]), apart * np.sqrt(2 / 3))
    assert error_of_differences({name: values[name] for name in "cd"}) is None
    alone = error_of_differences({"c": values["c"], "e": values["e"]})
    assert alone is not None
    half = student.ppf(0.975, 2) * np.std([9.0, 9.5, 9.9], ddof=1) * np.sqrt(1 / 3 + 1)
    assert np.isclose(alone.half(values["c"], values["e"]), half)


def test_probes_of_other_seeds_are_not_taken_for_pairs() -> None:
    same = probes({"raw": 0.2, "mini": 0.5}, 3, spread=0.05)
    rows = compare(same, "raw")
    same["mini"] = [replace(one, part=f"x/seed{i + 7}") for i, one in enumerate(same["mini"])]
    others = compare(same, "raw")
    assert list(others[1].by_seed) == ["seed7", "seed8", "seed9"]
    assert of_probes(others).of("mini", "raw").low != of_probes(rows).of("mini", "raw").low


def test_a_run_of_one_seed_leaves_the_test_of_the_others() -> None:
    pair = {"raw": {0: 10.0, 1: 12.0, 2: 14.2}, "mini": {0: 13.0, 1: 15.1, 2: 17.0}}
    before, after = of_runs(pair), of_runs(pair | {"blip": {0: 30.0}})
    assert after.of("mini", "raw") == before.of("mini", "raw")
    assert after.of("blip", "raw").low is not None
    assert after.about == (
        "95% t intervals over 3 training seeds, paired by seed (recipes with one seed use the "
        "seed error of the others)"
    )


def test_runs_without_two_seeds_in_common_are_not_paired() -> None:
    found = of_runs({"raw": {0: 10.0, 1: 11.0}, "mini": {2: 30.0, 3: 31.0}})
    change = found.of("mini", "raw")
    half = student.ppf(0.975, 2) * np.sqrt(0.5)
    assert np.allclose([change.mean, change.high], [20.0, 20.0 + half])
    assert found.about == (
        "95% t intervals over training seeds, paired for recipes with the same seeds"
    )


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
    assert found.about == "95% t intervals over 3 training seeds, paired by seed"


def test_with_one_seed_nothing_is_tested() -> None:
    found = of_runs({"raw": {0: 10.0}, "mini": {0: 30.0}})
    change = found.of("mini", "raw")
    assert (change.mean, change.low, change.high, change.is_clear) == (20.0, None, None, False)
    assert not found.tested


def test_error_of_means_are_pooled_over_recipes() -> None:
    found = error_of_means({"a": [1.0, 3.0], "b": [5.0, 9.0], "c": [4.0]})
    assert found is not None
    assert found.freedom == 2
    error = np.sqrt((2 + 8) / 2)
    for seeds in (1, 2):
        assert np.isclose(found.half(1 / seeds), student.ppf(0.975, 2) * error / np.sqrt(seeds))
    assert error_of_means({"a": [1.0]}) is None
