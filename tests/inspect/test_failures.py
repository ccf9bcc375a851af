"""`capmix failures` lists exactly the failed and dropped samples, whatever their texts."""

import csv
from functools import partial
from pathlib import Path

import pytest
from null_models import failing_captions, null_scores
from samples import BAD, GOOD, sample_members, tar_bytes

from capmix.cli.main import main
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """One good sample, two bad ones, one without a text, and one that the model fails on."""
    members = [*GOOD, *BAD["bad_uid"], *BAD["duplicate_key"]]
    members += [*sample_members("\x1b[31mred\t", 1), *sample_members("c", 2, " ")]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/0.tar").write_bytes(tar_bytes(members))
    opened = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    opened.index()
    opened.run(partial(failing_captions, opened.pool, [f"{1:032x}"]))
    opened.run(partial(null_scores, opened.pool, opened.store, ["raw"]))
    return opened


def test_every_row_that_is_not_ok_is_listed(
    work: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["failures", "--work", work.store.location]) == 0
    printed = capsys.readouterr()
    rows = [line.split("\t") for line in printed.out.splitlines()]
    assert [(row[0], row[3], row[4], row[5]) for row in rows] == [
        ("captions/null", "bad", "failed", "bad_uid"),
        ("captions/null", "good", "failed", "duplicate_key"),
        ("captions/null", "\\x1b[31mred\\t", "failed", "model_error"),
        ("samples", "bad", "failed", "bad_uid"),
        ("samples", "good", "failed", "duplicate_key"),
        ("scores/null/raw", "bad", "failed", "bad_uid"),
        ("scores/null/raw", "good", "failed", "duplicate_key"),
        ("scores/null/raw", "c", "dropped", "no_text"),
    ]
    assert all(len(row) == 7 for row in rows)
    assert "captions/null: 1 failed: model_error" in printed.err
    assert "scores/null/raw: 1 dropped: no_text" in printed.err


def test_one_stage_and_one_status_into_a_file(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "failures.csv"
    options = ["--stage", "scores/null/raw", "--status", "dropped", "--out", str(out)]
    assert main(["failures", "--work", work.store.location, *options]) == 0
    with out.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert row == {
        "stage": "scores/null/raw",
        "shard": "0",
        "uid": f"{2:032x}",
        "key": "c",
        "status": "dropped",
        "reason": "no_text",
        "detail": "no text to score",
    }


def test_a_missing_stage_is_an_error(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["failures", "--work", work.store.location, "--stage", "captions/blip"]) == 2
    assert "captions/blip has no finished parts" in capsys.readouterr().err
    assert main(["failures", "--work", str(tmp_path / "nowhere")]) == 2
    former = tmp_path / "former.csv"
    former.write_text("output of an earlier call")
    given = ["--work", work.store.location, "--stage", "captions/blip", "--out", str(former)]
    assert main(["failures", *given]) == 2
    assert former.read_text() == "output of an earlier call"
    out = ["--out", str(tmp_path / "no/such/folder.csv")]
    assert main(["failures", "--work", work.store.location, *out]) == 2
