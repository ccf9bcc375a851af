"""Base commands and captioning in one process run without what Windows or macOS lacks.

This is simulated on Linux by removing modules and functions (without_posix.py).
"""

import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import image_bytes

from capmix.errors import UserError
from capmix.storage.names import check_shard_names

SCRIPT = Path(__file__).with_name("without_posix.py")


COMMANDS = (
    "--help",
    "recipes",
    "caption photos --work W --source given --model field:caption",
    "mix --work W --recipe raw",
    "export --work W --subset raw --out out --workers 1",
    "status --work W",
    "verify --work W",
    "clean --work W --subset raw --yes",
)


def run(system: str, place: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), system, *commands],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_the_way_from_a_folder_to_shards(system: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    done = run(system, tmp_path, *COMMANDS)
    assert done.returncode == 0, done.stderr
    assert "caption given: 3 images in " in done.stderr
    assert "verified 4 parts" in done.stdout
    texts = pq.read_table(tmp_path / "W/captions/given/00000.parquet")["text"].to_pylist()
    assert texts == ["given 0", "given 1", "given 2"]
    with tarfile.open(tmp_path / "out/00000000.tar") as tar:
        assert len(tar.getnames()) == 9
    assert not list((tmp_path / "W").rglob("*.tmp"))


@pytest.mark.slow
def test_a_model_captions_in_one_process(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    done = run("windows", tmp_path, "caption photos --work W --source mini --model mini")
    assert done.returncode == 0, done.stderr
    assert "caption mini: 3 images in " in done.stderr


def test_links_are_refused_without_the_flags_that_refuse_them(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    (tmp_path / "secret.jpg").write_bytes(image_bytes(9))
    (tmp_path / "photos/0.jpg").unlink()
    (tmp_path / "photos/0.jpg").symlink_to("../secret.jpg")
    (tmp_path / "photos/3.jpg").symlink_to(
        "1.jpg"
    )  # a link inside the pool is read as a file of its own
    done = run("windows", tmp_path, "status photos --work W", COMMANDS[2].replace("photos", ""))
    assert done.returncode == 0, done.stderr
    assert "1 entry skipped (1 link that leaves the pool), for example '0.jpg'" in done.stderr
    assert "index: 3 images" in done.stderr


def test_what_needs_fork_is_refused_in_a_line(tmp_path: Path) -> None:
    done = run("windows", tmp_path, "train --scale tiny --data none --out run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "capmix: train: needs a system with fork, such as Linux, macOS or WSL"
    )


@pytest.mark.parametrize("name", ["a:b", "con", "a/nul/b", "aux.x", "a./b", "x\\y", "tab\t"])
def test_names_that_windows_cannot_hold(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check_shard_names([name])
    monkeypatch.setattr(sys, "platform", "win32")
    check_shard_names(["00000", "b/console", "null.x", "a.b"])
    with pytest.raises(UserError, match="not a valid file name on Windows"):
        check_shard_names([name])


def write_photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
        (folder / f"{i}.txt").write_text(f"a photo {i}")
        (folder / f"{i}.json").write_text(f'{{"caption": "given {i}"}}')
