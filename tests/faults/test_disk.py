"""Full and read-only disks, and parts that are damaged after they were written."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from counting_captioner import KILLED_MODEL, CountingCaptioner
from null_models import null_captions, null_scores
from samples import write_pool

from capmix.errors import UserError
from capmix.storage.store import Store
from capmix.workspace import open_workspace


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def captioned(pool: Path, work: Path) -> None:
    opened = open_workspace(str(pool), str(work))
    opened.run(partial(null_captions, opened.pool))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_run_stops_on_a_full_disk_and_resumes_with_free_space(
    small_disk: Path, tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "pool", shards=6, samples=30)
    captioned(pool, tmp_path / "whole")
    work = small_disk / "work"
    work.mkdir()
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        captioned(pool, work)
    made = files(work)
    assert [name for name in made if name.endswith(".tmp")] == []
    assert 0 < sum(name.startswith("captions") for name in made) < 12
    command = ["mount", "-o", "remount,size=2m", str(small_disk)]
    subprocess.run(command, check=True)
    captioned(pool, work)
    assert files(work) == files(tmp_path / "whole")


def test_a_disk_that_fills_up_inside_a_shard_costs_one_batch(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=200)
    open_workspace(str(pool), str(tmp_path / "whole")).caption("c", model=KILLED_MODEL)
    subprocess.run(["mount", "-o", "remount,size=96k", str(small_disk)], check=True)
    work = small_disk / "work"
    open_workspace(str(pool), str(work)).index()
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - 12_288)))
    batches = []
    caption = CountingCaptioner.caption
    monkeypatch.setattr(
        CountingCaptioner, "caption", lambda *args: batches.append(1) or caption(*args)
    )
    with pytest.raises(UserError, match=r"cannot write .*\.partial.*: No space left on device"):
        open_workspace(str(pool), str(work)).caption("c", model=KILLED_MODEL)
    before = len(batches)
    assert 5 < before < 45
    filler.unlink()
    open_workspace(str(pool), str(work)).caption("c", model=KILLED_MODEL)
    assert len(batches) == 50 + 1
    part = "captions/c/00000.parquet"
    assert (work / part).read_bytes() == (tmp_path / "whole" / part).read_bytes()


def test_a_part_that_cannot_be_written_to_its_end_is_not_there(tmp_path: Path) -> None:
    """A limit on the file size stands in for a full disk, which needs root to set up."""
    script = (
        "import resource, sys\n"
        "from capmix.storage.store import Store\n"
        "from capmix.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    Store(sys.argv[1]).write_bytes('a/part', bytes(3 << 20))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert "cannot write" in found.stdout, found.stderr
    assert "File too large" in found.stdout
    assert os.listdir(tmp_path / "a") == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20


def test_a_read_only_work_directory_is_reported(small_disk: Path, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    captioned(pool, small_disk / "done")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"cannot write .*: Read-only file system"):
        captioned(pool, small_disk / "new")
    captioned(pool, small_disk / "done")  # finished parts need no write access


@pytest.mark.parametrize("harm", ["delete", "cut", "empty", "torn marker", "no marker"])
def test_a_damaged_part_is_detected_and_recomputed(tmp_path: Path, harm: str) -> None:
    pool = write_pool(tmp_path / "pool", shards=3)
    work = tmp_path / "work"
    captioned(pool, work)
    before = files(work)
    part = work / "captions/null/00001.parquet"
    marker = work / ".markers/captions/null/00001.json"
    if harm == "delete":
        part.unlink()
    elif harm == "cut":
        part.write_bytes(part.read_bytes()[:-100])
    elif harm == "empty":
        part.write_bytes(b"")
    elif harm == "torn marker":
        marker.write_text(marker.read_text()[:50])
    else:
        marker.unlink()
    others = {p: p.stat().st_mtime_ns for p in work.rglob("0000[02].*")}
    captioned(pool, work)
    assert files(work) == before
    assert others == {p: p.stat().st_mtime_ns for p in work.rglob("0000[02].*")}


def test_a_damaged_part_that_others_read_is_one_clear_line(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool")
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    work.run(partial(null_captions, work.pool))
    (tmp_path / "w/captions/null/00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UserError, match=r"cannot use .*00001.parquet: size is 4 bytes, .*capmix verify --discard"
    ):
        work.run(partial(null_scores, work.pool, work.store, ["null"]))


def test_parts_of_other_settings_are_never_mixed(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "w"))
    work.run(partial(null_captions, work.pool))
    part = "captions/null/00001"
    marker = work.store.read_marker(part)
    assert marker is not None
    work.store.write_marker(part, replace(marker, config=marker.config | {"temperature": 1.0}))
    expected = r"different settings \(temperature 1.0 -> 0.75\). Choose another name .* --force"
    with pytest.raises(UserError, match=expected):
        work.run(partial(null_captions, work.pool), protected=work.pool.shards)
    work = work.using(force=True)
    work.run(partial(null_captions, work.pool), protected=work.pool.shards)
    marker_now = Store(str(tmp_path / "w")).read_marker("captions/null/00001")
    assert marker_now is not None
    assert "temperature" not in marker_now.config
