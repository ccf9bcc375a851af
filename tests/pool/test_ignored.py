"""The summary of ignored files."""

from pathlib import Path

import fsspec
import pytest
from samples import image_bytes, write_pool

from capmix.errors import UserError
from capmix.pool import open_pool
from capmix.pool.ignored import ignored_line


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_ignored_files_are_counted_by_suffix(no_heif: None) -> None:
    assert ignored_line({"svg": 2, "heic": 3}) == (
        "5 files ignored (.heic 3: pip install 'capmix[heif]'; .svg 2)"
    )
    assert ignored_line({"": 1}) == "1 file ignored (no suffix 1)"
    assert ignored_line({}) == ""
    many = {f"x{i}": 1 for i in range(8)} | {"big\x1b[31m" + "y" * 99: 1000}
    assert ignored_line(many) == (
        "1,008 files ignored (.big\\x1b[31myyyyyyyyy 1,000; .x0 1; .x1 1; .x2 1; .x3 1; .x4 1; "
        "3 other suffixes 3)"
    )


@pytest.mark.parametrize("remote", [False, True])
def test_ignored_files_of_an_image_folder_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_heif: None, remote: bool
) -> None:
    for name in ("a.jpg", "b.HEIC", "c.heic", "d.svg", "e.parquet", ".DS_Store", "a.txt", "f.json"):
        (tmp_path / name).write_bytes(image_bytes(1))
    location = str(tmp_path)
    if remote:
        location = "memory://ignored"
        fsspec.filesystem("memory").put(str(tmp_path), "/ignored", recursive=True)
    pool = open_pool(location)
    assert pool.files == {"00000": ["a.jpg"]}
    (record,) = caplog.records
    kinds = ".heic 2: pip install 'capmix[heif]'; .parquet 1; .svg 1"
    assert record.getMessage() == f"pool {location}: 4 files ignored ({kinds})"


def test_the_error_for_a_folder_of_only_ignored_files_names_the_package(
    tmp_path: Path, no_heif: None
) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"found; 1 file ignored \(.heic 1: pip install 'capmix\["):
        open_pool(str(tmp_path))


def test_beside_tars_only_ignored_images_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_pool(tmp_path, 1, 1)
    for name in ("00000.parquet", "00000_stats.json", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    open_pool(str(tmp_path))
    assert not caplog.records
    (tmp_path / "a.jpg").write_bytes(b"x")
    open_pool(str(tmp_path))
    assert caplog.messages == [f"pool {tmp_path}: 1 file ignored (.jpg 1)"]


def test_sidecars_are_not_reported_as_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes(0))
    for suffix in ("txt", "json", "caption", "tags"):
        (tmp_path / f"a.{suffix}").write_text("{}")
    open_pool(str(tmp_path))
    assert "ignored" not in caplog.text
