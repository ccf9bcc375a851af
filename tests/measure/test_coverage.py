import numpy as np
import pytest
from parts import SCORER, HandMade, Made, fresh_folder

from capmix.errors import UserError
from capmix.measure.coverage import measure_coverage
from capmix.measure.population import Population, measure_population
from capmix.measure.settings import MeasureSettings
from capmix.models.tokens import Tokens

SETTINGS = MeasureSettings(topics=2, map_points=20)


class ByFirstWord:
    """A text tower whose vectors depend on the words of a text, mostly on dog and car."""

    name = "words"
    settings = {"model": "words"}  # noqa: RUF012

    def tokenize(self, texts: list[str]) -> Tokens:
        return Tokens(texts, [False] * len(texts))

    def encode_tokens(self, inputs: list[str]) -> np.ndarray:
        random = np.random.default_rng(len(inputs))
        about = np.array([[("dog" in text), ("car" in text)] for text in inputs], np.float32)
        return np.hstack([about, random.normal(0, 0.01, (len(inputs), 2))]).astype(np.float32)


def test_topics_and_shares_of_two_plain_subjects() -> None:
    made = [
        Made(f"{i:032x}", "a dog barks" if i % 4 else "a car drives", 0.1, {"mini": ["my dog"]}, {})
        for i in range(20)
    ]
    here = HandMade(fresh_folder(), {"00000": made})
    population = measure_population(
        Population(here.store, here.pool, SCORER, ["raw", "mini"], ["raw"], SETTINGS)  # type: ignore[arg-type]
    )
    found = measure_coverage(
        here.store, population["digests"], ["raw", "mini"], SETTINGS, ByFirstWord()
    )  # type: ignore[arg-type]
    dogs, cars = found["topics"]
    assert "dog" in dogs["words"]
    assert set(cars["words"]) == {"car", "drives"}
    assert dogs["shares"] == {"raw": 0.75, "mini": 1.0}
    assert cars["shares"] == {"raw": 0.25, "mini": 0.0}
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found["effective_topics"]["raw"] == pytest.approx(np.exp(entropy))
    assert found["effective_topics"]["mini"] == pytest.approx(1)
    assert found["texts"] == {"raw": 20, "mini": 20}
    assert found["covered_topics"] == {"raw": 1, "mini": 1}  # 15 and 5 texts, 20 and 0
    points = here.store.read_table("measures/coverage.parquet")
    assert len(points) == 40
    assert np.isfinite(points["x"].to_numpy()).all()
    with pytest.raises(UserError, match="too many for the 40 texts of the sample"):
        many = MeasureSettings(topics=30)
        measure_coverage(here.store, population["digests"], ["raw", "mini"], many, ByFirstWord())  # type: ignore[arg-type]
