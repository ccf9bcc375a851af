from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import fresh_folder

from capmix.measure import distinct
from capmix.measure.distinct import Distinct
from capmix.measure.sketch import STANDARD_ERROR, Sketch, hashes, mixed

KEYS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1) | st.integers(0, 9), st.integers(0, 2))
)


@given(KEYS, KEYS)
def test_counts_are_those_of_sets(first: list, second: list) -> None:
    """At every level, for the keys of this and lower levels; for numbers and pairs."""
    one = Distinct(fresh_folder() / "one", 3)
    two = Distinct(fresh_folder() / "two", 3, width=2)
    for batch in (first, second):
        numbers = np.array([key[1] for key in batch], np.uint64)
        pairs = np.array([key[:2] for key in batch], np.uint64).reshape(-1, 2)
        levels = np.array([key[2] for key in batch], np.uint8)
        one.add(numbers, levels)
        two.add(pairs, levels)
    every = [*first, *second]
    assert one.counts() == [len({k[1] for k in every if k[2] <= n}) for n in range(3)]
    assert two.counts() == [len({k[:2] for k in every if k[2] <= n}) for n in range(3)]


def test_what_does_not_stay_in_memory_is_counted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distinct, "KEPT_KEYS", 1_000)
    keys = np.random.default_rng(0).integers(0, 30_000, 50_000).astype(np.uint64)
    counter = Distinct(tmp_path / "keys", 1)
    for start in range(0, len(keys), 700):
        counter.add(keys[start : start + 700], np.zeros(len(keys[start : start + 700]), np.uint8))
    assert counter.counts() == [len(set(keys.tolist()))]


@pytest.mark.parametrize("count", [10, 1_000, 40_000, 1_000_000])
def test_a_sketch_is_within_four_standard_errors(count: int) -> None:
    keys = mixed(np.arange(count, dtype=np.uint64))
    sketch = Sketch(2)
    sketch.add(keys, np.ones(count, np.uint8))
    sketch.add(keys[: count // 10], np.zeros(count // 10, np.uint8))
    few, many = sketch.counts()
    assert abs(many / count - 1) < 4 * STANDARD_ERROR
    assert abs(few / (count // 10) - 1) < 4 * STANDARD_ERROR
    assert 0.008 < STANDARD_ERROR < 0.0082


@given(st.lists(st.text(max_size=12)))
def test_a_hash_depends_on_the_text_alone(texts: list[str]) -> None:
    together = hashes(pa.array(["x", *texts, "y"], pa.string()))[1:-1].tolist()
    alone = [int(hashes(pa.array([text], pa.string()))[0]) for text in texts]
    assert together == alone
    assert len(set(together)) == len(set(texts))
