"""Which files a later export to the same directory may change."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from samples import write_pool

from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    write_pool(tmp_path / "pool", shards=2, samples=3)
    made = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    made.mix("raw")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_manifest(folder: Path) -> None:
    """Make an export look like one of capmix 0.1."""
    shutil.rmtree(folder / ".manifest")
    about = json.loads((folder / "_capmix_export.json").read_text())
    del about["shards"]
    (folder / "_capmix_export.json").write_text(json.dumps(about))


def test_each_shard_lists_its_files_and_the_list_is_hidden(work: Workspace, tmp_path: Path) -> None:
    work.export("raw", str(tmp_path / "out"), samples_per_shard=4, format="jsonl")
    lines = (tmp_path / "out/.manifest/00000001.txt").read_text().splitlines()
    names = [line.split(" ", 2)[2] for line in lines]
    uids = [f"{number:032x}" for number in (101, 102)]
    images = [f"images/00000001/{uid}-0.{suffix}" for uid in uids for suffix in ("jpg", "txt")]
    assert names == [*images, "00000001.jsonl"]
    sizes = [int(line.split(" ", 2)[1]) for line in lines]
    assert sizes == [(tmp_path / "out" / name).stat().st_size for name in names]
    whole = (tmp_path / "out/.manifest/export.txt").read_text()
    listed = {line.split(" ", 2)[2] for line in whole.splitlines()}
    assert listed == {"README.md", "metadata.jsonl", "llava.json"}


def test_a_readme_that_was_filled_in_is_kept(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out))
    card = (out / "README.md").read_text()
    filled = card.replace("To be filled in", "CC-BY")
    (out / "README.md").write_text(filled)
    for size in (10_000, 2, 2):
        with caplog.at_level(logging.WARNING, "capmix"):
            work.export("raw", str(out), samples_per_shard=size)
        assert (out / "README.md").read_text() == filled
        assert (out / "README.new.md").read_text() == card
        (warned,) = (one.message for one in caplog.records if one.levelno >= logging.WARNING)
        assert "README.md, which has changed or was not written by capmix" in warned
        assert "README.new.md" in warned
        caplog.clear()
    assert sorted(p.name for p in out.glob("README*")) == ["README.md", "README.new.md"]


def test_an_untouched_readme_is_replaced(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out))
    work.export("raw", str(out), format="csv")
    assert "Format: `captions.csv`" in (out / "README.md").read_text()
    assert not list(out.glob("README.new*"))


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("form", ["webdataset", "parquet", "jsonl", "csv"])
def test_files_of_others_stay_and_all_of_the_exports_own_go(
    work: Workspace, tmp_path: Path, form: str, is_old: bool
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), format=form, **({} if form == "csv" else {"samples_per_shard": 2}))
    written = set(files(out))
    others = {
        "images/holiday.jpg": b"mine",
        "images/00000000/holiday.png": b"mine",
        "images/2024/a-0.jpg": b"mine",
        "data/results.csv": b"mine",
        "data/deep/er/x.txt": b"mine",
        "notes.md": b"mine",
        "running/plan.txt": b"mine",
        "_markers/mine.txt": b"mine",
        "captions.csv.bak": b"mine",
    }
    if form != "jsonl":
        others["metadata.jsonl"] = b"mine"
    if not is_old:
        others |= {"00000077.tar": b"mine", "data/train-00000077.parquet": b"mine"}
    for name, data in others.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    if is_old:
        without_manifest(out)
    target = "csv" if form == "webdataset" else "webdataset"
    work.export("raw", str(out), format=target)
    work.export("raw", str(tmp_path / "fresh"), format=target)
    found = files(out)
    assert {name: found.get(name) for name in others} == others
    readmes = {"README.md", "README.new.md"} if is_old else set()
    fresh = set(files(tmp_path / "fresh"))
    assert set(found) - set(others) - readmes == fresh - readmes
    assert written - set(found)


def test_a_caption_that_was_edited_is_never_written_over(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), format="jsonl")
    edited = out / f"images/00000000/{0:032x}-0.txt"
    edited.write_text("Picture 0")  # same size
    before = files(out)
    with pytest.raises(UserError, match=r"have changed since \(first: .*0-0\.txt\).*--out"):
        work.export("raw", str(out), format="jsonl", samples_per_shard=4)
    assert files(out) == before
    work.export("raw", str(out), format="webdataset")
    assert edited.read_text() == "Picture 0"
    assert [p.name for p in (out / "images").rglob("*") if p.is_file()] == [edited.name]


def test_a_table_that_was_edited_is_kept_by_the_same_export(
    work: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), format="csv")
    written = (out / "captions.csv").read_text()
    (out / "captions.csv").write_text(f"{written}mine")
    work.export("raw", str(out), format="csv")
    assert (out / "captions.csv").read_text() == f"{written}mine"
    assert (out / "captions.new.csv").read_text() == written


SLOW = [pytest.param(number, marks=pytest.mark.slow) for number in (1, 4, 7, 10, 16, 19, 22)]


@pytest.mark.parametrize("killed_at", [13, *SLOW])
def test_a_killed_removal_resumes(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), samples_per_shard=2, format="jsonl")
    (out / "images/mine.jpg").write_bytes(b"mine")
    removed: list[str] = []
    real: Callable[..., None] = LocalFileSystem.rm_file

    def rm_file(self: LocalFileSystem, path: str) -> None:
        if ".tmp" not in path and "/running/" not in path:
            removed.append(path)
        if len(removed) == killed_at:
            raise KeyboardInterrupt
        real(self, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalFileSystem, "rm_file", rm_file)
        work.export("raw", str(out), samples_per_shard=4, format="jsonl")
    before = "images/mine.jpg"
    if killed_at % 2:  # also restore the earlier export
        work.export("raw", str(out), samples_per_shard=2, format="jsonl")
        work.export("raw", str(tmp_path / "older"), samples_per_shard=2, format="jsonl")
        assert files(out) == files(tmp_path / "older") | {before: b"mine"}
    work.export("raw", str(out), samples_per_shard=4, format="jsonl")
    work.export("raw", str(tmp_path / "fresh"), samples_per_shard=4, format="jsonl")
    assert files(out) == files(tmp_path / "fresh") | {before: b"mine"}


def test_what_a_killed_export_left_without_a_list_is_removed(
    work: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), samples_per_shard=2, format="jsonl")
    for name in (".manifest/00000001.txt", "_markers/00000001.json", "00000001.jsonl"):
        (out / name).unlink()
    work.export("raw", str(out))
    work.export("raw", str(tmp_path / "fresh"))
    assert files(out) == files(tmp_path / "fresh")
