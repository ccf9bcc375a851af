"""Compare imports with a join by dictionary."""

import csv
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import write_pool

from capmix.annotate import buckets, imported, join
from capmix.caption.flags import caption_flags
from capmix.cli.main import main
from capmix.pool import Shard
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import DROPPED, OK, Row, table_of
from capmix.storage.store import Store
from capmix.workspace import open_workspace

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
    out = capsys.readouterr().out
    assert "6 samples with a value, 2 without" in out
    assert "1 row with a uid that is not in the pool, 1 row with a repeated uid" in out
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


def test_a_score_that_is_not_finite_is_null(place: Path) -> None:
    """An infinite score would pass every threshold."""
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
        ("import captions . --source b --work w --pool pool", "no file ."),
        ("import captions pool --source b --work w --pool pool", "no file pool"),
        (
            "import captions pool/* --source b --work w --pool pool",
            "expected a file ending in .csv",
        ),
        ("import captions c.csv --source raw --work w --pool pool", "source raw"),
        ("import captions c.csv --source b --work new", "has no pool.json; pass its pool"),
        ("import scores c.csv --source b --work w --pool pool", "no captions of source 'b'"),
    ],
)
def test_user_errors_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    write_csv(place / "c.csv", [])
    assert run(command) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("capmix: ")
    assert message in last


def test_captions_of_a_model_are_not_overwritten(place: Path) -> None:
    assert run("caption pool --work w --source blip2 --model mini") == 0
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


FIELDS_OF = {
    "text": [
        ("k", pa.int32()),
        ("text", pa.string()),
        ("finish", pa.string()),
        ("flags", pa.list_(pa.string())),
    ],
    "score": [("k", pa.int32()), ("score", pa.float32()), ("truncated", pa.bool_())],
}
TEXTS = [
    "a dog",
    " two dogs\n",
    "",
    " \u3000",
    "dog dog dog",
    "stock photo of caf\u00e9",
    "I can't",
]
NUMBERS = ["0.5", "x", "inf", "nan", "", "1e300", "-2", "1_0"]


@dataclass
class Shards:
    """A pool with the one attribute that an import needs."""

    shards: list[Shard]


def write_index(store: Store) -> dict[str, list[Row]]:
    """Write the index of some shards, with samples that are not ok and samples that share a uid."""
    draw = random.Random(0)
    shards: dict[str, list[Row]] = {}
    for number, size in enumerate((300, 0, 1, 500, 200)):
        rows = [Row(f"u{draw.randrange(900)}", f"{i:03d}") for i in range(size)]
        for i in range(0, size, 7):
            rows[i] = replace(rows[i], status=DROPPED, reason="small", detail="8 px")
        name, shards[f"{number:05d}"] = f"{number:05d}", rows
        reasons = Counter(row.reason for row in rows if row.reason)
        counts = Counts(len(rows) - reasons.total(), reasons)
        with store.draft(f"samples/{name}") as draft:
            draft.write_table(f"samples/{name}.parquet", table_of(rows, []))
            draft.commit(Marker({}, {}, size, counts))
    return shards


def part_of(samples: list[Row], values: dict[str, str], column: str) -> pa.Table:
    """Build the expected part of a shard row by row."""
    rows = []
    for sample in samples:
        row = replace(sample, values=())
        value = values.get(sample.uid or "", "")
        if sample.status == OK and not value:
            row = replace(
                row, status=DROPPED, reason="not_imported", detail="no value in the imported files"
            )
        elif sample.status == OK and column == "text":
            text = value.strip()
            row = replace(row, values=(0, text, "stop", caption_flags(text, "stop")))
            if not text:
                row = replace(sample, status=DROPPED, reason="empty_caption")
                row = replace(row, detail="the caption is empty")
        elif sample.status == OK:
            row = replace(row, values=(0, float(value), None))
        rows.append(row)
    return table_of(rows, FIELDS_OF[column])


@pytest.mark.parametrize("most", [10**6, 100])
@pytest.mark.parametrize("column", ["text", "score"])
def test_parts_equal_those_built_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, most: int
) -> None:
    monkeypatch.setattr(join, "ROWS", most)
    monkeypatch.setattr(buckets, "ROWS_AT_ONCE", most)
    store, draw = Store(str(tmp_path / "work")), random.Random(1)
    shards = write_index(store)
    drawn_from = TEXTS if column == "text" else NUMBERS
    given = [(f"u{draw.randrange(1000)}", draw.choice(drawn_from)) for _ in range(1500)]
    with (tmp_path / "c.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("uid", column), *given])
    pool: Any = Shards([Shard(name, f"{name}.tar") for name in shards])
    files = [str(tmp_path / "c.csv")]
    if column == "text":
        imported.import_captions(store, pool, files, "c", "uid", column)
    else:
        imported.import_scores(store, pool, files, "s", "c", "uid", column)
    values: dict[str, str] = {}
    for uid, value in given:
        values.setdefault(uid, value)
    if column == "score":
        values = {uid: v for uid, v in values.items() if v in ("0.5", "-2")}
    folder = "captions/c" if column == "text" else "scores/s/c"
    for name, samples in shards.items():
        table = store.read_table(f"{folder}/{name}.parquet")
        assert table.equals(part_of(samples, values, column))
        times = Counter(uid for uid, _ in given)
        marker = store.read_marker(f"{folder}/{name}")
        assert marker is not None
        assert marker.extra["repeated"] == sum(
            times[row.uid or ""] - 1 for row in samples if row.status == OK and times[row.uid or ""]
        )
    assert not list((tmp_path / "work").rglob("*.arrow"))


def test_a_failed_shard_is_a_one_line_error_and_a_rerun_completes_the_import(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(place / "c.csv", [(uid, "a dog") for uid in UIDS])
    open_workspace("pool", "w").index()
    index = place / "w/samples/00001.parquet"
    data = index.read_bytes()
    index.write_bytes(data[:-9] + b"x" + data[-8:])
    assert run(CAPTIONS) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2  # the listing, and the error
    assert "samples/00001.parquet" in lines[1]
    index.write_bytes(data)
    assert run(CAPTIONS) == 0
    assert "8 samples with a value, 0 without" in capsys.readouterr().out


def test_a_part_that_cannot_be_written_is_a_one_line_error(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(place / "c.csv", [(uid, "a dog") for uid in UIDS])
    open_workspace("pool", "w").index()
    (place / "w/captions").mkdir()
    (place / "w/captions/blip2").write_text("in the way")
    assert run(CAPTIONS) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2  # the listing, and the error
    assert "captions/blip2" in lines[1]
