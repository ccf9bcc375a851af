from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from capmix.mix.mix import Summary
from capmix.report.gather import FoundSubset
from capmix.report.headline import headline
from capmix.report.outcomes import RecipeOutcome

JITTER = (-0.1, 0.0, 0.1)


def found_of(averages: dict[str, float], seeds: int = 3, gap: float = 0.2) -> tuple[Any, list]:
    """Return trained runs by recipe; the recipe's name contains its sources.

    The seeds' averages differ by `gap`, in another order for each recipe.
    """
    subsets, by_seed, runs = {}, {}, []
    for i, (name, average) in enumerate(averages.items()):
        sources = name.split("-")[0].split("+")
        clauses = [{"source": source, "where": "true", "weight": "1"} for source in sources]
        recipe = {"clauses": clauses, "shuffle": "shuffled" in name, "distinct": None}
        subsets[name] = FoundSubset(name, Summary(name, 10, 5, {}, {}, {}, 0.5, ""), recipe)
        moved = [gap * 5 * JITTER[(i + k) % 3] for k in range(seeds)] if seeds > 1 else [0.0]
        by_seed[name] = {seed: average + one for seed, one in enumerate(moved)}
        spread = gap if seeds > 1 else 0.0
        runs.append(
            RecipeOutcome(
                name, "runs", seeds, average, average - spread, average + spread, None, None
            )
        )
    found = SimpleNamespace(
        subsets=subsets, by_seed=by_seed, runs=runs, is_of_people=lambda source: source == "edited"
    )
    return found, runs


def headline_of(
    averages: dict[str, float], seeds: int = 3, gap: float = 0.2, baseline: str = "raw"
) -> Any:
    found, runs = found_of(averages, seeds, gap)
    return headline(found, [], runs, baseline)


def test_the_highest_is_set_against_the_baseline_and_mixing_against_synthetic_alone() -> None:
    found = headline_of({"raw": 10.0, "mini": 22.5, "raw+mini": 22.4, "raw+mini-shuffled": 1.0})
    assert found.text == (
        "mini: +12.5 points over raw [12.3, 12.7]; "
        "mixing is not distinguishable from synthetic alone"
    )
    rest = np.array([[-0.1, 0.0, 0.1], [0.0, 0.1, -0.1], [0.1, -0.1, 0.0], [-0.1, 0.0, 0.1]])
    rest -= rest.mean(0)
    half = student.ppf(0.975, 6) * np.sqrt(2 * (rest**2).sum() / 6 / 3)
    assert f"[{12.5 - half:.1f}, {12.5 + half:.1f}]" == "[12.3, 12.7]"
    assert found.marks == {"mini": "best", "raw+mini": "tie", "raw": "lower"}
    assert found.more[0] == "mini is highest, 22.5 ± 0.2%; not distinguishable from it: raw+mini."
    assert found.more[1].startswith("The highest mix is raw+mini: −0.1 points [")
    assert found.more[2] == "All controls are lower: raw+mini-shuffled 1.0%."
    assert found.about.startswith(
        "4 recipes, 3 seeds each (trained runs). In brackets: 95% t intervals over 3 training"
    )
    assert found.about.endswith(
        "for each pair separately. “Over” and “lower” are significant at 5%, corrected for all "
        "6 pairs. "
        "“Not distinguishable” means not significant. The highest of several means is biased "
        "upward."
    )


def test_one_pair_needs_no_correction_and_two_have_no_order_to_choose_from() -> None:
    found = headline_of({"raw": 10.0, "mini": 22.5})
    assert found.about.endswith(
        "paired by seed. “Over” and “lower” are significant at 5%. “Not distinguishable” means "
        "not significant."
    )


def test_mixing_that_is_clear_of_synthetic_alone_is_reported_either_way() -> None:
    mixed = headline_of({"raw": 10.0, "mini": 20.0, "raw+mini": 30.0})
    assert mixed.text.startswith("raw+mini: +20.0 points over raw [")
    assert "; mixing: +10.0 points over synthetic alone [" in mixed.text
    alone = headline_of({"raw": 10.0, "mini": 30.0, "raw+mini": 20.0})
    assert "; synthetic alone: +10.0 points over mixing [" in alone.text


@pytest.mark.parametrize(
    "averages",
    [
        {"raw": 10.0, "mini": 15.0, "mini+coca": 20.0},
        {"raw": 10.0, "edited": 15.0, "edited+mini": 20.0},
        {"raw": 10.0, "raw+edited": 20.0, "mini": 15.0},
        {"raw": 10.0, "raw+mini": 20.0, "edited": 15.0},
        {"raw": 10.0, "raw+mini+edited": 20.0, "mini": 15.0},
    ],
)
def test_mixing_is_raw_text_with_synthetic_and_people_are_not_synthetic(
    averages: dict[str, float],
) -> None:
    found = headline_of(averages)
    assert "mixing" not in found.text
    assert "synthetic" not in found.text
    assert not [line for line in found.more if line.startswith("The highest mix")]


def test_several_synthetic_sources_are_synthetic_alone() -> None:
    found = headline_of({"raw": 10.0, "mini": 15.0, "mini+coca": 20.0, "raw+mini": 30.0})
    assert found.text.partition("; ")[2].startswith("mixing: +10.0 points over synthetic alone [")
    assert found.more[1].endswith("compared with mini+coca.")


def test_what_chance_explains_is_no_gain() -> None:
    found = headline_of({"raw": 10.0, "mini": 10.6}, gap=1.0)
    assert found.text.startswith(
        "No recipe is clearly above raw; the highest is mini: +0.6 points [−"
    )
    assert found.marks == {"mini": "best", "raw": "tie"}
    found = headline_of({"raw": 20.0, "mini": 10.0})
    assert found.text.startswith("No recipe is above raw; the next is mini: −10.0 points [−")


def test_a_control_as_good_as_the_highest_comes_with_a_warning() -> None:
    found = headline_of({"raw": 10.0, "mini": 22.5, "mini-shuffled": 22.6})
    assert found.more[-1] == "Check this first: mini is not clearly above mini-shuffled."
    assert "mini-shuffled" not in found.marks


def test_one_seed_each_is_not_tested() -> None:
    found = headline_of({"raw": 10.0, "mini": 22.5, "raw+mini": 12.0}, seeds=1)
    assert found.text == "mini: +12.5 points over raw; not tested"
    assert found.marks == {"mini": "best", "raw": "", "raw+mini": ""}
    assert found.about == (
        "3 recipes, 1 seed each (trained runs). Differences are not tested: no recipe has two "
        "seeds."
    )


@pytest.mark.parametrize(
    ("averages", "text"),
    [
        ({"mini": 30.8}, "mini: average 30.8%; no other recipe to compare it with"),
        ({"mini": 30.8, "blip": 20.0}, "mini: average 30.8%, the highest of 2 recipes"),
    ],
)
def test_without_a_baseline_the_average_is_reported(averages: dict[str, float], text: str) -> None:
    assert headline_of(averages, seeds=1).text == text


def test_controls_alone_have_no_headline() -> None:
    assert headline_of({"control-random": 3.0}) is None
