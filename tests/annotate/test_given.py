"""Rows of imported files without a usable value: counts by reason, and the first row of each."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import write_pool

from capmix.annotate.given import MAX_ROW, REASONS, Fault, FaultCounts, read_given
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
def test_a_broken_line_affects_only_its_row(
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
    assert work.import_captions([str(file)], source="c") == found  # not repeated
    reason = REASONS["bad_line"]
    assert found.lines()[3] == f"       3  bad_line       {reason}; c.{suffix}, row 4"


def test_scores_that_are_not_numbers_are_reported(work: Workspace, tmp_path: Path) -> None:
    values = ["0.5", "x", "inf", "nan", "1e300", "", "0.25", "0.75"]
    rows = [f"{uid},{value}" for uid, value in zip(UIDS, values, strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(["uid,score", *rows[:3]]))
    (tmp_path / "b.csv").write_text("\n".join(["score,uid", *map(reversed_cells, rows[3:])]))
    found = work.import_scores([str(tmp_path / "*.csv")], source="raw")
    assert found.faults == {
        "bad_number": Fault(4, f"a.csv, row 3: uid {UIDS[1]}"),
        "no_value": Fault(1, f"b.csv, row 4: uid {UIDS[5]}"),
    }
    assert (found.matched, found.without) == (3, 5)


def reversed_cells(row: str) -> str:
    return ",".join(reversed(row.split(",")))


@pytest.mark.parametrize("is_dictionary", [False, True])
def test_parquet_texts_that_are_not_utf8_affect_only_their_rows(
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


def test_numbers_and_strings_of_parquet_are_read_as_scores(work: Workspace, tmp_path: Path) -> None:
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


def test_a_file_of_another_format_or_without_a_column_is_a_one_line_error(
    work: Workspace, tmp_path: Path
) -> None:
    for name, data, message in (
        ("a.parquet", b"no parquet", r"import: .*a\.parquet: "),
        ("b.csv", b"", r"import: .*b\.csv: no column 'uid'; columns: "),
        ("c.csv", b"uid,\xff\n", "import: .*c\\.csv: no column 'text'; columns: uid, \ufffd$"),
        ("d.csv", b'uid,"text\n', r"import: .*d\.csv: cannot read the header: unexpected end"),
        ("e.csv", b"x," * 10**6, r"import: .*e\.csv: no column 'uid'; columns: .{1000}$"),
        ("f.csv", b"x" * (MAX_ROW + 1), r"import: .*f\.csv: cannot read the header: the row is"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            work.import_captions([str(tmp_path / name)], source="c")


class Rejected(FaultCounts):
    """Records place and reason of all unreadable rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def add_rejected(self, table: pa.Table) -> None:
        self.rows += [(row["place"], row["reason"]) for row in table.to_pylist()]


def given_rows(paths: Sequence[Path], is_caption: bool = True) -> tuple[list[Any], list[Any]]:
    """Return the readable rows (place, uid, value) and the unreadable ones (place, reason)."""
    column, rejected = "text" if is_caption else "score", Rejected()
    files = [str(path) for path in paths]
    with duckdb.connect() as connection:
        tables = read_given(connection, files, "uid", column, is_caption, rejected)
        rows = [row for table in tables for row in table.to_pylist()]
    return [(row["place"], row["uid"], row["value"]) for row in rows], rejected.rows


def test_lines_in_a_quoted_text_are_not_mistaken_for_rows(tmp_path: Path) -> None:
    """The file is large enough for other readers to split it among threads."""
    uids = [f"{i:032x}" for i in range(40_000)]
    rows = []
    for i, uid in enumerate(uids):
        lines = [f"{uids[(i + 7 * j + 50) % len(uids)]},not of this row" for j in range(12)]
        rows.append((uid, "\n".join(["Beside:", *lines, 'end, "ok"'])))
    with (tmp_path / "c.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("uid", "text"), *rows])
    found, rejected = given_rows([tmp_path / "c.csv"])
    assert rejected == []
    assert [row[1:] for row in found] == rows
    assert [row[0] for row in found] == list(range(2, 2 + len(rows)))


@pytest.mark.parametrize(
    ("data", "rows", "rejected"),
    [
        ("uid,text\na,one\rhalf\nb,two\n", [(3, "b", "two")], [(2, "bad_line")]),
        ("uid,text\r\na,one\nb,two\n", [(2, "a", "one"), (3, "b", "two")], []),
        ('uid,text\na,"one"\r\nb,two\n', [(2, "a", "one"), (3, "b", "two")], []),
        ("uid,text\na,one\r\nb,two\nc,3\n", [(2, "a", "one"), (3, "b", "two"), (4, "c", "3")], []),
        ("uid,text\r\r\na,one\r\r\nb,two\r\r\n", [(2, "a", "one"), (3, "b", "two")], []),
        ("uid,text\ra,one\rb,two", [(2, "a", "one"), (3, "b", "two")], []),
        ('uid,text\ra,"x\ny"\rb,two\r', [(2, "a", "x\ny"), (3, "b", "two")], []),
        ('uid,text\na,"x\ry\r\nz"\n', [(2, "a", "x\ry\r\nz")], []),
        ("uid,text\n\na,one\n\n", [(3, "a", "one")], []),
        ("uid,text\na,x\0y\n", [(2, "a", "x\0y")], []),
        ('uid,text\na,""\n"",b\n', [(2, "a", None), (3, None, "b")], []),
        ('uid,text\na,one\nb,"open\nc,3\n', [(2, "a", "one")], [(3, "bad_line")]),
        ('uid,text\na,one\nb,"open"\nc', [(2, "a", "one"), (3, "b", "open")], [(4, "bad_line")]),
    ],
)
def test_a_csv_with_mixed_line_ends_is_read_row_by_row(
    tmp_path: Path, data: str, rows: list[Any], rejected: list[Any]
) -> None:
    (tmp_path / "c.csv").write_bytes(data.encode())
    assert given_rows([tmp_path / "c.csv"]) == (rows, rejected)


def test_a_row_over_the_limit_affects_no_other_row(tmp_path: Path) -> None:
    fits, long = "x" * (MAX_ROW - 3), "x" * (3 * MAX_ROW)
    quoted = "e,of a text\n" * (MAX_ROW // 6)
    rows = ["uid,text", f"a,{fits}", f"b,{long}", f'c,"{quoted}"', f"d,{long},x", "e,five", ""]
    (tmp_path / "c.csv").write_text("\n".join(rows))
    assert given_rows([tmp_path / "c.csv"]) == (
        [(2, "a", fits), (6, "e", "five")],
        [(3, "bad_line"), (4, "bad_line"), (5, "bad_line")],
    )


def test_invalid_utf8_in_other_columns_is_ignored(
    tmp_path: Path,
) -> None:
    (tmp_path / "c.csv").write_bytes(b"uid,url,text\na,\xff,one\nb,u,\xed\xa0\x80\n")
    assert given_rows([tmp_path / "c.csv"]) == ([(2, "a", "one")], [(3, "bad_encoding")])


def test_a_score_with_underscores_is_not_a_number(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("uid,score\na,1_000\nb,1e-1\nc, 2.5 \n")
    pq.write_table(pa.table({"uid": ["d"], "score": ["1_0"]}), tmp_path / "s.parquet")
    with duckdb.connect() as connection:
        files = [str(tmp_path / "s.csv")]
        tables = read_given(connection, files, "uid", "score", False, FaultCounts())
        rows = [row for table in tables for row in table.to_pylist()]
    found = [(row["uid"], row["value"], row["is_bad"]) for row in rows]
    assert found == [("a", None, True), ("b", pytest.approx(0.1), False), ("c", 2.5, False)]
    assert given_rows([tmp_path / "s.parquet"], False)[0] == [(1, "d", None)]


def test_a_duplicate_column_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("uid,text,text\na,one,two\n")
    twice = pa.Table.from_arrays([pa.array(["a"])] * 3, ["uid", "uid", "text"])
    pq.write_table(twice, tmp_path / "c.parquet")
    for name, column in (("c.csv", "text"), ("c.parquet", "uid")):
        with pytest.raises(UserError, match=rf"import: .*{name}: 2 columns are named '{column}'"):
            given_rows([tmp_path / name])


def test_other_columns_may_share_a_name(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("n,uid,n,text\n1,a,2,one\n")
    four = pa.Table.from_arrays([pa.array(["a"])] * 4, ["n", "uid", "n", "text"])
    pq.write_table(four, tmp_path / "c.parquet")
    assert given_rows([tmp_path / "c.csv"])[0] == [(2, "a", "one")]
    assert given_rows([tmp_path / "c.parquet"])[0] == [(1, "a", "a")]


@pytest.mark.parametrize("is_caption", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([["x"]]),
        pa.array([{"x": 1}]),
        pa.array([True]),
        pa.array([0], pa.timestamp("s")),
        pa.array([[("x", 1)]], pa.map_(pa.string(), pa.int32())),
    ],
)
def test_a_column_of_an_unsupported_type_is_a_one_line_error(
    tmp_path: Path, values: pa.Array, is_caption: bool
) -> None:
    column = "text" if is_caption else "score"
    pq.write_table(pa.table({"uid": ["a"], column: values}), tmp_path / "c.parquet")
    kind = re.escape(str(pq.read_schema(tmp_path / "c.parquet").field(column).type))
    message = rf"import: .*c\.parquet: column '{column}' has type {kind}; expected texts or numbers"
    with pytest.raises(UserError, match=message):
        given_rows([tmp_path / "c.parquet"], is_caption)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int8(), "binary")]
)
def test_binary_columns_are_read_as_texts_if_they_are_utf8(
    tmp_path: Path, kind: pa.DataType
) -> None:
    values = pa.array([b"caf\xc3\xa9", b"caf\xe9", None], pa.binary())
    values = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    pq.write_table(pa.table({"uid": ["a", "b", "c"], "text": values}), tmp_path / "c.parquet")
    rows, rejected = given_rows([tmp_path / "c.parquet"])
    assert rows == [(1, "a", "café"), (3, "c", None)]
    assert rejected == [(2, "bad_encoding")]


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_string_type_of_parquet_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    texts = pa.array(["a", "bé", None])
    texts = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts.cast(kind)
    pq.write_table(pa.table({"uid": texts, "text": texts}), tmp_path / "c.parquet")
    assert given_rows([tmp_path / "c.parquet"]) == (
        [(1, "a", "a"), (2, "bé", "bé"), (3, None, None)],
        [],
    )


def test_half_floats_are_read_as_scores(tmp_path: Path) -> None:
    scores = pa.array([0.5, None, 1.25], pa.float16())
    pq.write_table(pa.table({"uid": ["a", "b", "c"], "score": scores}), tmp_path / "s.parquet")
    rows, _ = given_rows([tmp_path / "s.parquet"], False)
    assert rows == [(1, "a", 0.5), (2, "b", None), (3, "c", 1.25)]


@pytest.mark.parametrize(
    "data", ["", "feed,x\n", f"{UIDS[0]},\n", f"{UIDS[0]}, \n", "too,many,x\n"]
)
def test_files_without_one_usable_row_replace_nothing(
    work: Workspace, tmp_path: Path, data: str
) -> None:
    (tmp_path / "good.csv").write_text(f"uid,text\n{UIDS[0]},good\n")
    (tmp_path / "c.csv").write_text(f"uid,text\n{data}")
    work.import_captions([str(tmp_path / "good.csv")], source="c")
    with pytest.raises(UserError, match=r"import: no row of 1 file has a usable value.*c\.csv"):
        work.import_captions([str(tmp_path / "c.csv")], source="c")
    assert texts(work) == ["good", *[None] * 7]
    assert work.import_captions([str(tmp_path / "c.csv")], source="c", force=True).matched == 0
    assert texts(work) == [None] * 8
