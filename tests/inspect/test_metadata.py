"""The coverage of a pool's metadata equals a plain count with sets."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import BAD, sample_members, tar_bytes

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.inspect import metadata as module
from capmix.inspect.metadata import NOT_KEPT, RARE, UNKNOWN
from capmix.workspace import Workspace, open_workspace

GONE = "HTTP Error 404: Not Found"


def uid(number: int) -> str:
    return f"{number:032x}"


def write(path: Path, uids: list[str | None], **columns: list[object]) -> Path:
    urls = [f"http://a/{n}" for n in range(len(uids))]
    table = pa.table({"uid": pa.array(uids, pa.string()), "url": urls, **columns})
    pq.write_table(table, path)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """Samples 0 to 9 in two tars, of which 9 has a broken image."""
    (tmp_path / "pool").mkdir()
    for shard in range(2):
        members = [m for n in range(5 * shard, 5 * shard + 5) for m in sample_members(f"k{n}", n)]
        if shard:
            members[-3] = (members[-3][0], b"not an image")
            members += BAD["no_image"]
        (tmp_path / f"pool/{shard:05d}.tar").write_bytes(tar_bytes(members))
    return open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"), max_failures=1.0)


def test_rows_are_counted_by_file(work: Workspace, tmp_path: Path) -> None:
    first = write(tmp_path / "a.parquet", [uid(n) for n in (0, 1, 2, 20, 21)])
    second = write(tmp_path / "b.parquet", [uid(9), uid(2), None, uid(20), uid(22)])
    found = work.coverage([first, second])
    assert [(f.rows, f.in_pool, f.failed, f.missing, f.no_uid) for f in found.files] == [
        (5, 3, 0, 2, 0),
        (5, 1, 1, 2, 1),
    ]
    assert [one.reasons for one in found.files] == [{UNKNOWN: 2}, {UNKNOWN: 2}]
    assert (found.samples, found.not_in_metadata, found.repeated) == (10, 6, 2)
    assert (found.total.rows, found.total.in_pool, found.total.missing) == (10, 4, 4)
    assert work.coverage(tmp_path / "*.parquet").as_json() == found.as_json()
    assert found.to_table().num_rows == 2


def test_a_file_name_with_brackets_is_not_a_pattern(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "meta1.parquet", [uid(0)])
    write(tmp_path / "meta[1].parquet", [uid(0), uid(1)])
    assert work.coverage(tmp_path / "meta[1].parquet").total.rows == 2
    assert work.coverage(tmp_path / "meta[12].parquet").total.rows == 1


def test_the_counts_equal_sets_of_uids(work: Workspace, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    numbers = [draw.integers(0, 25, 40).tolist() for _ in range(3)]
    (tmp_path / "meta").mkdir()
    for name, of_file in enumerate(numbers):
        write(tmp_path / f"meta/{name}.parquet", [uid(n) for n in of_file])
    found = work.coverage(tmp_path / "meta")
    for one, of_file in zip(found.files, numbers, strict=True):
        assert one.in_pool == sum(n < 9 for n in of_file)
        assert one.failed == of_file.count(9)
        assert one.missing == sum(n > 9 for n in of_file)
    every = [n for of_file in numbers for n in of_file]
    assert found.repeated == len(every) - len(set(every))
    assert found.not_in_metadata == len(set(range(10)) - set(every))


def test_reasons_come_from_the_tables_and_statistics_of_img2dataset(
    work: Workspace, tmp_path: Path
) -> None:
    statuses = ["success", "failed_to_download", "failed_to_download", "failed_to_resize"]
    errors = [None, GONE, GONE, "image decoding error"]
    uids: list[str | None] = [uid(n) for n in (30, 31, 32, 33)]
    write(tmp_path / "pool/00000.parquet", uids, status=statuses, error_message=errors)
    (tmp_path / "pool/00001.parquet").write_bytes(b"damaged")
    counts = {"success": 5, GONE: 2, "bad": "x", "worse": -1}
    for shard in range(2):
        (tmp_path / f"pool/{shard:05d}_stats.json").write_text(json.dumps({"status_dict": counts}))
    meta = write(tmp_path / "meta.parquet", [*uids, uid(34), uid(0)])
    found = work.coverage(meta)
    (one,) = found.files
    assert one.reasons == {GONE: 2, NOT_KEPT: 1, "image decoding error": 1, UNKNOWN: 1}
    assert next(iter(one.reasons)) == GONE
    assert found.downloads == {"success": 10, GONE: 4}


def test_reasons_come_from_the_status_of_the_metadata_itself(
    work: Workspace, tmp_path: Path
) -> None:
    uids: list[str | None] = [uid(0), uid(40), uid(41)]
    statuses = ["success", "failed_to_download", "success"]
    meta = write(tmp_path / "meta.parquet", uids, status=statuses)
    assert work.coverage(meta).files[0].reasons == {"failed_to_download": 1, NOT_KEPT: 1}


def test_rare_reasons_are_counted_together(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers choose the texts, so that every row can have another one."""
    monkeypatch.setattr(module, "MOST_REASONS", 2)
    errors = [GONE, GONE, "b", "a", "d", "c", GONE]
    uids: list[str | None] = [uid(60 + n) for n in range(len(errors))]
    meta = write(tmp_path / "meta.parquet", uids, status=["failed"] * 7, error_message=errors)
    found = work.coverage([meta, write(tmp_path / "other.parquet", [uid(0), uid(70)])])
    assert [one.reasons for one in found.files] == [{GONE: 3, "a": 1, RARE: 3}, {UNKNOWN: 1}]
    assert sum(found.total.reasons.values()) == found.total.missing


def test_too_little_memory_is_a_one_line_error(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEMORY", "1KB")
    meta = write(tmp_path / "meta.parquet", [uid(n) for n in range(1000)])
    with pytest.raises(UserError, match="status: .*[Mm]emory"):
        work.coverage(meta)


def test_the_command_prints_a_table_or_json(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[31m" + "x" * 500
    write(tmp_path / "a.parquet", [uid(0), uid(50)], error_message=[None, hostile],
          status=["success", "failed_to_download"])  # fmt: skip
    write(tmp_path / "b.parquet", [uid(n) for n in range(4)])
    place = [str(tmp_path / "pool"), "--work", str(tmp_path / "work")]
    files = [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]
    assert main(["status", *place, "--metadata", *files]) == 0
    shown = capsys.readouterr().out
    assert "all files" in shown
    assert "83.3%" in shown
    assert "\x1b" not in shown
    assert "6 of 10 samples of the pool not in the metadata" in shown
    assert max(map(len, shown.splitlines())) < 250
    assert main(["status", *place, "--json", "--metadata", *files]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["in_pool"] == 5
    assert [one["missing"] for one in found["files"]] == [1, 0]
    assert main(["status", *place, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert Counter(one["stage"] for one in stages)["samples"] == 1


@pytest.mark.parametrize("kind", ["absent", "csv", "no uid"])
def test_unusable_metadata_is_a_one_line_error(work: Workspace, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "meta.parquet"
    if kind == "csv":
        path.write_text("uid\nx\n")
    elif kind == "no uid":
        pq.write_table(pa.table({"url": ["a"]}), path)
    expected = {"absent": "no such file", "csv": "Expected a parquet file", "no uid": "'uid'"}
    with pytest.raises(UserError, match=f"--metadata .*{expected[kind]}"):
        work.coverage(path)
