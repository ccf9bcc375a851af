"""Compare joins in one and in several buckets with a dictionary."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from capmix.annotate import buckets, join
from capmix.annotate.given import FaultCounts
from capmix.annotate.join import Join

PATHS = ["a.csv"]


def drawn() -> tuple[list[list[str]], list[tuple[str | None, str | None]]]:
    """Draw the uids of the samples of some shards, with a few duplicates, and rows of files."""
    draw = random.Random(0)
    shards = [[f"u{draw.randrange(900)}" for _ in range(size)] for size in (0, 200, 1, 300, 0, 99)]
    uids = [*(f"u{i}" for i in range(1000)), None]
    rows = [(draw.choice(uids), draw.choice(["x", "a text", None])) for _ in range(2000)]
    return shards, rows


def joined(
    folder: Path, shards: list[list[str]], rows: list[tuple[str | None, str | None]]
) -> tuple[dict[tuple[int, int], tuple[int, str | None]], list[int], FaultCounts]:
    """Run a join.

    Returns the number of rows and the value of the first row, by shard and position; the shards in
    the order in which they were yielded; and the fault counts.
    """
    counted, found, order = FaultCounts(), {}, []
    with duckdb.connect() as connection:
        one = Join(connection, str(folder), PATHS, pa.string(), len(shards), 600)
        for start in range(0, len(rows), 100):
            uids, values = zip(*rows[start : start + 100], strict=True)
            places = np.arange(start, start + len(uids))
            columns = [places, pa.array(uids, pa.string()), pa.array(values, pa.string())]
            is_bad = pa.array([False] * len(uids))
            names = ["place", "uid", "value", "is_bad"]
            one.add_given(pa.table([*columns, is_bad], names=names))
        for number, uids_of in enumerate(shards):
            column = pa.chunked_array([pa.array(uids_of, pa.string())])
            one.add_samples(number, column, np.arange(len(uids_of)) * 2)
        one.match(counted)
        for number, here in one.by_shard():
            order.append(number)
            lists = here.positions.tolist(), here.times.tolist(), here.values.to_pylist()
            for position, times, value in zip(*lists, strict=True):
                found[number, position] = times, value
    return found, order, counted


@pytest.mark.parametrize(("most", "at_once"), [(10**6, 10**6), (300, 500), (60, 150)])
def test_a_join_in_any_number_of_buckets_equals_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, at_once: int
) -> None:
    monkeypatch.setattr(join, "ROWS", most)
    monkeypatch.setattr(buckets, "ROWS_AT_ONCE", at_once)
    (tmp_path / "a.csv").write_text("x" * 40_000)
    monkeypatch.chdir(tmp_path)
    shards, rows = drawn()
    values: dict[Any, list[str | None]] = defaultdict(list)
    for uid, value in rows:
        values[uid].append(value)
    expected = {
        (number, 2 * place): (len(values[uid]), values[uid][0])
        for number, uids in enumerate(shards)
        for place, uid in enumerate(uids)
        if values[uid]
    }
    found, order, counted = joined(tmp_path, shards, rows)
    assert found == expected
    assert order == list(range(len(shards)))
    assert counted.is_usable
    known = {uid for uids in shards for uid in uids}
    firsts = {uid: next(i for i, row in enumerate(rows) if row[0] == uid) for uid, _ in rows}
    places: dict[str, list[int]] = {"no_uid": [], "unknown_uid": [], "duplicate_uid": []}
    places["no_value"] = []
    for place, (uid, value) in enumerate(rows):
        if uid is None:
            places["no_uid"].append(place)
        elif uid not in known:
            places["unknown_uid"].append(place)
        elif firsts[uid] < place:
            places["duplicate_uid"].append(place)
        elif value is None:
            places["no_value"].append(place)
    faults = counted.found(PATHS)
    assert {name: one.rows for name, one in faults.items()} == {
        k: len(v) for k, v in places.items()
    }
    for name, one in faults.items():
        first = min(places[name])
        shown = "" if name == "no_uid" else f": uid {rows[first][0]}"
        assert one.example == f"a.csv, row {first}{shown}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_an_empty_join_has_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, order, counted = joined(tmp_path, [[], ["u"]], [])
    assert (found, order, counted.found(PATHS), counted.is_usable) == ({}, [0, 1], {}, False)
