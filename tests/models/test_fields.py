"""Columns of JSON fields, compared with a simple conversion of each value."""

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capmix.models import fields
from capmix.models.fields import FieldColumns, as_type, common_type
from capmix.pool.sample import BadSample, Sample

scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**53 + 1, 2**63, -(2**63), 10**400]),
    st.floats(width=16),
    st.sampled_from(["", "1", "true", "ü\ud800"]),
    st.sampled_from([[], [1, [2.5]], {"a": None}]),
)
samples = st.lists(
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["a", "b", "uid", "x.y"]), scalar)),
    max_size=12,
)


def columns_of(metadata: list[dict[str, Any] | None]) -> FieldColumns:
    """Collect the fields of samples; None stands for a sample that could not be read."""
    found = FieldColumns()
    for number, about in enumerate(metadata):
        if about is None:
            found.add(BadSample(str(number), "no_image", ""))
        else:
            found.add(Sample(str(number), f"u{number}", b"", "jpg", None, about))
    return found


def plain(value: Any) -> Any:
    """Convert a value as documented."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return None if value > 10**308 else float(value)
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"))
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def sql_type(value: Any) -> str:
    return {bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}[type(value)]


@pytest.mark.parametrize("at_once", [1, 3, 1024])
@settings(max_examples=40, deadline=None)
@given(metadata=samples)
def test_columns_hold_the_values_of_each_sample(
    at_once: int, metadata: list[dict[str, Any] | None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "AT_ONCE", at_once)
        table = columns_of(metadata).table()
    expected: dict[str, list[Any]] = {}
    for name in ("a", "b"):
        values = [plain((about or {}).get(name)) for about in metadata]
        types = [sql_type(one) for one in values if one is not None]
        if types:
            kind = types[0]
            for other in types[1:]:
                kind = common_type(kind, other)
            expected[name] = [as_type(one, kind) for one in values]
    uids = [None if about is None else f"u{i}" for i, about in enumerate(metadata)]
    found = table.to_pydict()
    assert found.pop("uid") == (uids if expected else [])
    assert found == expected


def test_the_common_type_does_not_depend_on_the_order_of_shards() -> None:
    types = ["BOOLEAN", "BIGINT", "DOUBLE", "VARCHAR"]
    for one in types:
        for other in types:
            assert common_type(one, other) == common_type(other, one)
            for third in types:
                first = common_type(common_type(one, other), third)
                assert first == common_type(one, common_type(other, third))


def test_the_texts_of_a_shard_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_SHARD_BYTES", 100)
    monkeypatch.setattr(fields, "AT_ONCE", 4)
    found = columns_of([{"a": "x" * 10, "n": 1}] * 20)
    assert found.table()["a"].null_count == 10
    assert found.table()["n"].null_count == 0
    assert found.left_out == {fields.SHARD_FULL: 10}


def test_the_number_of_fields_is_bounded() -> None:
    found = columns_of([{f"n{i}_{j}": 1 for j in range(200)} for i in range(10)])
    assert len(found.table().schema) == 1 + fields.MAX_FIELDS
    assert found.left_out == {fields.TOO_MANY: 2000 - fields.MAX_FIELDS}
    assert found.table().schema.field("n0_0").type == pa.int64()
