import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capmix.measure.noise import Noise, agreement
from capmix.measure.steps import StepCounts, step_value, steps_of


def column(values: list[float | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.float32())])


def test_a_hand_worked_distribution() -> None:
    noise = Noise()
    noise.add(column([0.1, None, 0.3]))
    noise.add(column([0.2, 0.4, None, 0.5]))
    found = noise.result()
    assert found["scored"] == 5
    assert found["mean"] == pytest.approx(0.3)
    assert found["deciles"][0] == pytest.approx(0.1)
    assert found["deciles"][5] == pytest.approx(0.3)
    assert found["deciles"][10] == pytest.approx(0.5)
    assert sum(found["histogram"]["counts"]) == 5
    assert found["top"] == pytest.approx(0.38)  # interpolated between the third and fourth of five


def test_agreement_is_of_samples_that_have_both_scores() -> None:
    first, second = Noise(), Noise()
    first.add(column([0.1, 0.2, 0.3, None]))
    second.add(column([0.3, 0.1, 0.4, 0.9]))
    (pair,) = agreement({"raw": first, "mini": second})
    assert (pair["first"], pair["second"], pair["samples"]) == ("raw", "mini", 3)
    assert pair["first_higher"] == pytest.approx(1 / 3)
    assert pair["difference"] == pytest.approx((-0.2 + 0.1 - 0.1) / 3)
    assert pair["correlation"] == pytest.approx(np.corrcoef([0.1, 0.2, 0.3], [0.3, 0.1, 0.4])[0, 1])
    assert pair["above_top"] == 3 / 4  # 0.26 and more: 0.3, 0.4 and 0.9


SCORES = st.none() | st.floats(-1, 1, width=32) | st.integers(-60, 60).map(lambda i: i / 200)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=40), st.integers(1, 5))
def test_cells_count_what_reaches_each_threshold(pairs: list, batch: int) -> None:
    """For each pair of steps, the cells count as many samples as a float32 comparison selects."""
    counts = StepCounts(["raw", "mini"])
    for start in range(0, len(pairs), batch):
        first, second = zip(*pairs[start : start + batch], strict=True)
        counts.add([column(list(first)), column(list(second))])
    found = counts.result()
    assert found is not None
    assert sum(cell[2] for cell in found["cells"]) == len(pairs)
    for at in range(-5, 6):
        step = at * 20
        value = float(step_value(np.array([step]), found["unit"], found["scale"])[0])
        reach = sum(n for a, _, n in found["cells"] if a is not None and a >= step)
        assert reach == sum(a is not None and np.float32(a) >= np.float32(value) for a, _ in pairs)


def test_steps_are_joined_when_there_are_too_many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capmix.measure.steps.MOST_CELLS", 10)
    counts = StepCounts(["raw"])
    values = np.linspace(-1, 1, 500).astype(np.float32)
    counts.add([pa.chunked_array([pa.array(values)])])
    found = counts.result()
    assert found is not None
    assert len(found["cells"]) <= 10
    steps = steps_of(values, found["unit"], found["scale"])
    assert [[s, int((steps == s).sum())] for s in np.unique(steps)] == found["cells"]


def test_scores_of_another_range_have_steps_of_their_own() -> None:
    counts = StepCounts(["raw"])
    counts.add([column([12.0, 31.5, 40.25])])
    found = counts.result()
    assert found is not None
    assert (found["unit"], found["scale"]) == (5, 10)
    assert [cell[0] for cell in found["cells"]] == [24, 63, 80]


def test_no_scores_have_no_steps() -> None:
    assert StepCounts([]).result() is None


@pytest.mark.parametrize("values", [[0.3, 0.3], [1.0, 1.0000001], [0.5]])
def test_scores_that_hardly_differ_have_a_histogram(values: list[float]) -> None:
    noise = Noise()
    noise.add(column([*values, float("inf"), None]))
    found = noise.result()
    assert found["scored"] == sum(found["histogram"]["counts"]) == len(values)


def test_many_sources_end_in_a_bounded_number_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first six sources count; steps -1 and 0 are never merged, which leaves 3^6 cells."""
    monkeypatch.setattr("capmix.measure.steps.MOST_CELLS", 3**6)
    counts = StepCounts([f"s{i}" for i in range(17)])
    values = np.random.default_rng(0).normal(0, 0.05, (17, 20_000)).astype(np.float32)
    counts.add([pa.chunked_array([pa.array(one)]) for one in values])
    found = counts.result()
    assert found is not None
    assert found["sources"] == [f"s{i}" for i in range(6)]
    assert len(found["cells"]) <= 3**6
    assert sum(cell[-1] for cell in found["cells"]) == 20_000
