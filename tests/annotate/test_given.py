"""Rows of imported files that give no value: by reason, with where the first one is."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import write_pool

from capmix.annotate.given import Fault
from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace

UIDS = [f"{shard * 100 + row:032x}" for shard in range(2) for row in range(4)]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "work"))


def texts(work: Workspace) -> list[str | None]:
    return [
        text
        for shard in ("00000", "00001")
        for text in work.store.read_table(f"captions/c/{shard}.parquet")["text"].to_pylist()
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_broken_line_costs_its_row_alone(
    work: Workspace, tmp_path: Path, suffix: str, comma: str, mark: str, end: str
) -> None:
    lines = [
        b"uid,text",
        f'{UIDS[0]},"two{end}lines"'.encode(),
        f"{UIDS[1]},bad ".encode() + b"\xff",
        f"{UIDS[2]},one,too many".encode(),
        UIDS[2].encode(),
        f'{UIDS[3]},"a"b'.encode(),
        b",no uid",
        b"feed,unknown",
        f"{UIDS[4]},good".encode(),
        f"{UIDS[4]},again".encode(),
        f"{UIDS[5]},".encode(),
        b"f00d,unknown",
    ]
    data = mark.encode() + end.encode().join(lines).replace(b",", comma.encode())
    file = tmp_path / f"c.{suffix}"
    file.write_bytes(data)
    found = work.import_captions([str(file)], source="c")
    assert texts(work) == [f"two{end}lines", None, None, None, "good", None, None, None]
    expected = {
        "bad_line": Fault(3, f"c.{suffix}, row 4"),
        "bad_encoding": Fault(1, f"c.{suffix}, row 3"),
        "no_uid": Fault(1, f"c.{suffix}, row 7"),
        "unknown_uid": Fault(2, f"c.{suffix}, row 8: uid feed"),
        "duplicate_uid": Fault(1, f"c.{suffix}, row 10: uid {UIDS[4]}"),
        "no_value": Fault(1, f"c.{suffix}, row 11: uid {UIDS[5]}"),
    }
    assert found.faults == expected
    assert list(found.faults) == list(expected)
    assert (found.matched, found.without, found.unknown, found.repeated) == (2, 6, 2, 1)
    assert work.import_captions([str(file)], source="c") == found  # done before
    told = "it has too many or too few columns, an open quote, or over 2 MB"
    assert found.lines()[3] == f"       3  bad_line       {told}; c.{suffix}, row 4"


def test_scores_that_are_no_numbers_are_named(work: Workspace, tmp_path: Path) -> None:
    values = ["0.5", "x", "inf", "nan", "1e300", "", "0.25", "0.75"]
    rows = [f"{uid},{value}" for uid, value in zip(UIDS, values, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["uid,score", *rows[:3]]))
    (tmp_path / "b.csv").write_text("\n".join(["score,uid", *map(turned, rows[3:])]))
    found = work.import_scores([str(tmp_path / "*.csv")], source="raw")
    assert found.faults == {
        "bad_number": Fault(4, f"a.csv, row 3: uid {UIDS[1]}"),
        "no_value": Fault(1, f"b.csv, row 4: uid {UIDS[5]}"),
    }
    assert (found.matched, found.without) == (3, 5)


def turned(row: str) -> str:
    return ",".join(reversed(row.split(",")))


@pytest.mark.parametrize("is_dictionary", [False, True])
def test_texts_of_parquet_that_are_no_utf8_cost_their_rows_alone(
    work: Workspace, tmp_path: Path, is_dictionary: bool
) -> None:
    captions = pa.array([b"good", b"bad \xff", None, b"fine"], pa.binary()).view(pa.string())
    uids = pa.array([UIDS[0].encode(), UIDS[1].encode(), UIDS[2].encode(), b"\xff"]).view("string")
    table = pa.table({"uid": uids, "text": captions})
    if is_dictionary:
        table = table.set_column(1, "text", captions.dictionary_encode())
    pq.write_table(table, tmp_path / "c.parquet")
    found = work.import_captions([str(tmp_path / "c.parquet")], source="c")
    assert texts(work) == ["good", *[None] * 7]
    assert found.faults == {
        "bad_encoding": Fault(2, "c.parquet, row 2"),
        "no_value": Fault(1, f"c.parquet, row 3: uid {UIDS[2]}"),
    }


def test_scores_of_parquet_of_any_kind(work: Workspace, tmp_path: Path) -> None:
    numbers = pa.table({"uid": UIDS[:3], "score": [1, 2, None]})
    words = pa.table({"uid": UIDS[3:6], "score": ["0.5", "five", None]})
    pq.write_table(numbers, tmp_path / "1.parquet")
    pq.write_table(words, tmp_path / "2.parquet")
    found = work.import_scores([str(tmp_path / "*.parquet")], source="raw")
    assert found.matched == 3
    assert found.faults == {
        "bad_number": Fault(1, f"2.parquet, row 2: uid {UIDS[4]}"),
        "no_value": Fault(2, f"1.parquet, row 3: uid {UIDS[2]}"),
    }


def test_a_file_of_another_kind_or_without_a_column_is_one_line(
    work: Workspace, tmp_path: Path
) -> None:
    for name, data, told in (
        ("a.parquet", b"no parquet", r"import: .*a\.parquet: "),
        ("b.csv", b"", r"import: .*b\.csv: no column 'uid'; columns: "),
        ("c.csv", b"uid,\xff\n", r"import: .*c\.csv: no column 'text'; columns: uid, "),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=told):
            work.import_captions([str(tmp_path / name)], source="c")
