"""Names and patterns of local files."""

from pathlib import Path

import pytest

from capmix.storage.filesystem import expanded


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "[b].csv", "b.csv"):
        (tmp_path / name).touch()
    (tmp_path / "c.csv").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", [".", "/", "..", "", "c.csv", "none*"])
def test_a_folder_names_no_file(folder: Path, name: str) -> None:
    assert expanded(name) == []


def test_a_pattern_names_files_only(folder: Path) -> None:
    assert expanded("*.csv") == ["[b].csv", "a.csv", "b.csv"]
    assert expanded(str(folder), ".csv") == [str(folder / one) for one in expanded("*.csv")]
    assert expanded(".", ".csv") == expanded("*.csv")


def test_an_existing_file_is_no_pattern(folder: Path) -> None:
    assert expanded("[b].csv") == ["[b].csv"]
