from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from capmix.annotate import buckets
from capmix.annotate.buckets import Buckets, group_adjacent
from capmix.errors import UserError

SCHEMA = pa.schema({"row": pa.int64(), "text": pa.string()})


def rows(start: int, end: int) -> pa.Table:
    numbers = np.arange(start, end)
    return pa.table({"row": numbers, "text": [f"text {i}" for i in numbers]}, schema=SCHEMA)


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("at_once", [10, 25, 1000])
def test_rows_of_a_bucket_keep_their_order_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, at_once: int
) -> None:
    monkeypatch.setattr(buckets, "ROWS_AT_ONCE", at_once)
    kept = Buckets(str(tmp_path / "b"), SCHEMA)
    for start in range(0, 100, 10):
        kept.add(rows(start, start + 10), np.arange(start, start + 10, dtype=np.uint64))
        if kept.is_full:
            kept.count = count
    kept.count = count
    for number in range(count):
        expected = [i for i in range(100) if i % count == number]
        assert kept.take(number)["row"].to_pylist() == expected
        assert kept.take(number).num_rows == 0
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_when_they_reach_the_size_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SIZE_AT_ONCE", 1000)
    kept = Buckets(str(tmp_path / "b"), SCHEMA, 2)
    kept.add(rows(0, 4), np.arange(4))
    assert (kept.rows, len(list(tmp_path.iterdir()))) == (4, 0)
    kept.add(pa.table({"row": [4], "text": ["x" * 1000]}, schema=SCHEMA), np.array([4]))
    assert (kept.rows, len(list(tmp_path.iterdir()))) == (0, 2)


def test_a_bucket_that_cannot_be_written_is_a_one_line_error(tmp_path: Path) -> None:
    kept = Buckets(str(tmp_path / "none" / "b"), SCHEMA, 2)
    kept.add(rows(0, 4), np.arange(4))
    with pytest.raises(UserError, match=r"cannot write .*none/b\.0\.arrow: No such file"):
        kept.take(0)


def test_adjacent_items_are_grouped_up_to_a_total_size() -> None:
    sizes = np.array([1, 1, 1, 1, 5, 0, 1, 1])
    assert group_adjacent(sizes, 2).tolist() == [0, 0, 1, 1, 2, 3, 3, 4]
    assert group_adjacent(np.array([0.0, 0.0]), 1.0).tolist() == [0, 0]
    assert group_adjacent(np.array([], np.int64), 1.0).tolist() == []
