"""Topics that subsets cover, against the subjects of their texts."""

from typing import Any

import numpy as np
import pytest
from parts import SCORER, HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.measure import coverage, subset_topics
from capmix.measure.coverage import measure_coverage
from capmix.measure.population import Population, measure_population, read_sample
from capmix.measure.settings import MeasureSettings
from capmix.measure.subset_topics import MeasuredTopics, TopicCoverage
from capmix.mix.recipe import load_recipe
from capmix.mix.subset import SubsetRows
from capmix.models.tokens import Tokens

SETTINGS = MeasureSettings(topics=2, map_points=10)
SOURCES = ["raw", "mini"]
SAMPLES = 40


class ByFirstWord:
    """A text tower with one direction for texts on dogs, another for the others."""

    name = "words"
    settings = {"model": "words"}  # noqa: RUF012

    def tokenize(self, texts: list[str]) -> Tokens:
        return Tokens(texts, [False] * len(texts))

    def encode_tokens(self, inputs: list[str]) -> np.ndarray:
        return np.array([[("dog" in text), ("dog" not in text)] for text in inputs], np.float32)


@pytest.fixture
def here() -> HandMade:
    """One raw text in four is about a car, with a low score; all captions are about dogs."""
    made = [
        Made(
            f"{i:032x}",
            f"dog {i}" if i % 4 else f"car {i}",
            (i + SAMPLES * (i % 4 > 0)) / 100,
            {"mini": [f"my dog {i}"]},
            {"mini": [0.5]},
        )
        for i in range(SAMPLES)
    ]
    return HandMade(fresh_folder(), {"00000": made[:25], "00001": made[25:]})


def measured(here: HandMade, sources: list[str] = SOURCES) -> dict[str, Any]:
    asked = Population(here.store, here.pool, SCORER, sources, sources, SETTINGS)  # type: ignore[arg-type]
    digests = measure_population(asked)["digests"]
    return measure_coverage(here.store, digests, sources, SETTINGS, ByFirstWord())  # type: ignore[arg-type]


def topics_of(here: HandMade, recipe: str, **parameters: Any) -> TopicCoverage:
    here.mix(load_recipe(recipe, parameters), "out")
    return MeasuredTopics.read(here.store).of(SubsetRows.pinned(here.store, "out"))


def by_subject(found: dict[str, Any], covered: TopicCoverage) -> dict[str, int]:
    subjects = {one["topic"]: "car" if "car" in one["words"] else "dog" for one in found["topics"]}
    return {subjects[topic]: count for topic, count in enumerate(covered.counts)}


def test_topics_of_a_subset_are_those_of_its_own_texts(here: HandMade) -> None:
    found = measured(here)
    raw = topics_of(here, "raw")
    assert (by_subject(found, raw), raw.unknown) == ({"dog": 30, "car": 10}, 0)
    assert (raw.covered(), raw.covered(11), raw.covered(31)) == (2, 1, 0)
    assert raw.effective == pytest.approx(found["effective_topics"]["raw"])
    best = topics_of(here, "raw-top", fraction=0.25)
    assert by_subject(found, best) == {"dog": len(here.rows()), "car": 0}
    assert best.covered() == 1
    mixed = topics_of(here, "raw-top+synthetic", fraction=0.25)
    assert by_subject(found, mixed) == {"dog": 40, "car": 0}
    assert mixed.effective == pytest.approx(1)
    shuffled = topics_of(here, "control-raw-shuffled")
    assert by_subject(found, shuffled) == {"dog": 30, "car": 10}


def test_only_samples_whose_texts_were_all_measured_count(
    here: HandMade, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (coverage, subset_topics):
        monkeypatch.setattr(module, "TEXTS_OF_SOURCE", 16)
    found = measured(here)
    first = read_sample(here.store).slice(0, 16)["raw_text"].to_pylist()
    cars = sum("car" in text for text in first)
    raw = topics_of(here, "raw")
    assert by_subject(found, raw) == {"dog": 16 - cars, "car": cars}
    shuffled = topics_of(here, "control-raw-shuffled")
    assert sum(shuffled.counts) + shuffled.unknown == 16
    assert shuffled.unknown > 0  # texts of samples that were not measured


def test_topics_must_be_measured_first(here: HandMade) -> None:
    with pytest.raises(UserError, match="no topics of texts .* run `capmix measure --model"):
        topics_of(here, "raw")
    assert TopicCoverage([0, 0], 0).effective == 0


def test_a_source_whose_topics_were_not_measured_is_no_lack_of_coverage(here: HandMade) -> None:
    measured(here, ["raw"])
    assert sum(topics_of(here, "raw").counts) == SAMPLES
    with pytest.raises(UserError, match="the texts of mini were not measured; run"):
        topics_of(here, "best-of-k")
