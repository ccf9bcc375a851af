"""Imports against a plain dictionary join."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import write_pool

from capmix.cli.main import main

UIDS = [f"{shard * 100 + row:032x}" for shard in range(2) for row in range(4)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_pool(tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("uid", "blip2-cap"), *rows])


def run(command: str) -> int:
    return main(command.split())


CAPTIONS = "import captions c.csv --text-column blip2-cap --source blip2 --work w"


def test_captions_of_a_csv_reach_the_mix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(uid, f'a "quoted", line {i}\nmore ') for i, uid in enumerate(UIDS[:6])]
    write_csv(place / "c.csv", [*rows, ("feed", "not of this pool"), (UIDS[0], "again")])
    assert run(f"{CAPTIONS} --pool pool") == 0
    told = capsys.readouterr().out
    assert "6 samples got a value, 2 got none" in told
    assert "1 rows of the files are about no sample of the pool, 1 repeat a uid" in told
    found = {}
    for shard in ("00000", "00001"):
        table = pq.read_table(place / f"w/captions/blip2/{shard}.parquet", use_threads=False)
        found |= dict(zip(table["uid"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert found == {uid: dict(rows).get(uid, "").strip() or None for uid in UIDS}
    assert run("mix pool --work w --recipe synthetic --synthetic blip2 --out s") == 0
    assert pq.read_table(place / "w/subsets/s.parquet", use_threads=False).num_rows == 6
    assert run(CAPTIONS) == 0


def test_scores_of_parquet_files_set_the_threshold(place: Path) -> None:
    (place / "metadata").mkdir()
    for i in range(2):
        table = pa.table({"uid": UIDS[4 * i : 4 * i + 4], "clip": pa.array([i, 0.1, 0.2, None])})
        pq.write_table(table, place / f"metadata/{i}.parquet")
    command = "import scores metadata/*.parquet --column clip --source raw --scorer clip-l14"
    assert run(f"{command} --work w --pool pool") == 0
    marker = json.loads((place / "w/.markers/scores/clip-l14/raw/00000.json").read_text())
    assert marker["counts"] == {"ok": 3, "dropped": {"not_imported": 1}, "failed": {}}
    assert run("mix pool --work w --recipe raw-top --fraction 0.3 --out top") == 0
    top = pq.read_table(place / "w/subsets/top.parquet", use_threads=False)
    assert top["score"].to_pylist() == pytest.approx([0.2, 1.0, 0.2])


def test_a_score_that_is_no_number_is_none(place: Path) -> None:
    """An infinite one would pass every threshold."""
    values = [float("inf"), float("-inf"), float("nan"), 0.5, None, 0.1, 0.2, 0.3]
    pq.write_table(pa.table({"uid": UIDS[:8], "score": values}), place / "s.parquet")
    assert run("import scores s.parquet --source raw --work w --pool pool") == 0
    kept = [pq.read_table(place / f"w/scores/imported/raw/0000{i}.parquet", use_threads=False)
            for i in range(2)]  # fmt: skip
    scores = [value for table in kept for value in table["score"].to_pylist()]
    assert scores == pytest.approx([None, None, None, 0.5, None, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import captions c.csv --source b --work w --pool pool", "no column 'text'"),
        ("import captions no.csv --source b --work w --pool pool", "no file no.csv"),
        ("import captions pool --source b --work w --pool pool", "expected a file ending in .csv"),
        ("import captions c.csv --source raw --work w --pool pool", "source raw"),
        ("import captions c.csv --source b --work new", "no pool.json in it; name its pool"),
        ("import scores c.csv --source b --work w --pool pool", "no captions of source 'b'"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    write_csv(place / "c.csv", [])
    assert run(command) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("capmix: ")
    assert message in last


def test_a_models_captions_are_not_written_over(place: Path) -> None:
    assert run("caption pool --work w --source blip2") == 0
    write_csv(place / "c.csv", [(UIDS[0], "x")])
    assert run(CAPTIONS) == 2
    assert run(f"{CAPTIONS} --force") == 0


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([*UIDS, "x", "y"]), st.text("ab,\"' é", min_size=1))))
def test_equals_a_dictionary_join(place: Path, rows: list[tuple[str, str]]) -> None:
    write_csv(place / "c.csv", rows)
    assert run(f"{CAPTIONS} --pool pool --force") == 0
    first: dict[str, str] = {}
    for uid, text in rows:
        first.setdefault(uid, text.strip())
    for shard in ("00000", "00001"):
        table = pq.read_table(place / f"w/captions/blip2/{shard}.parquet", use_threads=False)
        for row in table.to_pylist():
            assert row["text"] == (first.get(row["uid"]) or None)
