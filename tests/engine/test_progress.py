"""A run shows its progress within a shard and counts existing parts, in one or more processes."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from null_models import null_captions
from samples import write_pool

from capmix.engine import messages, progress, seen
from capmix.workspace import Workspace, open_workspace


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with messages.shown():
        yield


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("progress") / "pool", shards=2, samples=64)


def opened(pool: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> Workspace:
    """Return a workspace that is indexed and has captions for its first shard."""
    work = open_workspace(str(pool), str(folder / "w"))
    work.index()
    work.run(partial(null_captions, work.pool))
    (folder / "w/.markers/captions/null/00001.json").unlink()
    for name, value in (("PLAIN_EVERY", 0.15), ("JSON_EVERY", 0.15)):
        monkeypatch.setattr(progress, name, value)
    monkeypatch.setattr(seen, "REPORT_INTERVAL", 0.05)
    messages.change(messages.MessageForm(progress=form))  # type: ignore[arg-type]
    return work


def test_plain_lines_of_one_shard_behind_one_that_is_done(
    pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = opened(pool, tmp_path, monkeypatch, "plain")
    capsys.readouterr()
    work.run(partial(null_captions, work.pool, seconds=0.02))
    *lines, summary = capsys.readouterr().err.splitlines()
    counts = [re.match(r"caption null: (\d+) of 128 images \((\d+)%\)", line) for line in lines]
    done = [int(one[1]) for one in counts if one]
    assert len(done) == len(lines) > 3
    assert done == sorted(done)
    assert {64, 80, 96} <= {*done} <= {64, 80, 96, 112, 128}
    left = [line for line in lines if re.search(r", \d+ images/s, [\d.]+ s left$", line)]
    assert left
    assert re.fullmatch(
        r"caption null: 128 images in [\d.]+ s \(\d+ images/s\), 0 failed, 0 dropped, "
        r"64 already done; model busy \d+%",
        summary,
    )


def test_json_of_one_shard_behind_one_that_is_done(
    pool: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = opened(pool, tmp_path, monkeypatch, "json")
    capsys.readouterr()
    work.run(partial(null_captions, work.pool, seconds=0.02))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    first, *steps, last, _ = [line for line in lines if line["event"] != "prepare"]
    assert (first["event"], first["done"], first["total"]) == ("start", 64, 128)
    assert (last["event"], last["done"], last["ok"], last["eta_s"]) == ("end", 128, 64, 0)
    measured = [step for step in steps if step["rate"]]
    assert measured
    for step in measured:  # 50 images/s, or fewer on a busy machine
        assert step["rate"] < 51
        left = (step["total"] - step["done"]) / step["rate"]
        assert 0 <= step["eta_s"] <= left + 0.06  # time went by since the last batch


def test_all_that_was_done_before_is_one_line(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = opened(pool, tmp_path, monkeypatch, "plain")
    work.run(partial(null_captions, work.pool))
    capsys.readouterr()
    work.run(partial(null_captions, work.pool))
    assert capsys.readouterr().err == (
        "caption null: 128 images already done, 0 failed, 0 dropped\n"
    )
