"""Text files beside the images of a pool."""

import os
from pathlib import Path
from typing import Any

import pytest
from photos import PHOTOS, add_captions, mixed, photo, write_photos
from samples import write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.storage.temporary import process_namespace
from capmix.workspace import Workspace, open_workspace

TEXTS = ["a dog", "a hill", "a why"]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    made = mixed(write_photos(tmp_path / "photos"), tmp_path / "work")
    add_captions(made, tmp_path, TEXTS)
    made.mix("synthetic", synthetic="c", out="s")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def captions(suffix: str) -> dict[str, bytes]:
    names = [str(Path(name).with_suffix(suffix)) for name in PHOTOS]
    return {name: text.encode() for name, text in zip(names, TEXTS, strict=True)}


def test_nothing_but_texts_is_written_and_a_rerun_changes_nothing(
    work: Workspace, tmp_path: Path
) -> None:
    before = contents(tmp_path / "photos")
    for _ in range(2):
        counts = work.export("s", sidecars=True, text_suffix=".caption")
        assert (counts.ok, counts.total) == (3, 3)
        assert contents(tmp_path / "photos") == before | captions(".caption")


def test_texts_that_are_there_are_kept_and_counted(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(tmp_path / "photos")
    counts = work.export("s", sidecars=True)
    assert (counts.ok, dict(counts.dropped)) == (0, {"kept_existing": 3})
    assert (
        "kept 3 existing files with other texts (first: IMG_1.txt); use --overwrite" in caplog.text
    )
    assert contents(tmp_path / "photos") == before
    assert work.export("s", sidecars=True, overwrite=True).ok == 3
    assert contents(tmp_path / "photos") == before | captions(".txt")
    assert "the written files are now the pool's raw texts" in caplog.text


def test_a_killed_run_resumes_though_the_pool_has_changed(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PHOTOS:
        (tmp_path / "photos" / name).with_suffix(".txt").unlink()
    from capmix.export import folder

    place, calls = folder._place, iter((False, True))

    def killed(*given: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return place(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder, "_place", killed)
        work.export("s", sidecars=True)
    again = open_workspace(work=str(tmp_path / "work"))
    assert again.export("s", sidecars=True).ok == 3
    assert contents(tmp_path / "photos").items() >= captions(".txt").items()


def test_raw_texts_with_a_line_break_at_their_end_are_the_same(
    work: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "photos/IMG_1.txt"
    path.write_text("first\r\n")
    assert work.export("raw", sidecars=True).ok == 3
    assert path.read_bytes() == b"first\r\n"


def test_an_image_that_is_gone_or_changed_gets_no_text(work: Workspace, tmp_path: Path) -> None:
    (tmp_path / "photos/IMG_1.JPG").unlink()
    (tmp_path / "photos/trip/why?.png").write_bytes(b"another")
    with pytest.raises(
        UserError, match=r"for 2 of 3 images .* \(changed_sample 1, image_gone 1; first: "
    ):
        work.export("s", sidecars=True, text_suffix=".caption")
    assert not (tmp_path / "photos/IMG_1.caption").exists()


def test_one_line_counts_the_images_that_are_gone_and_names_one(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos/trip/why?.png").unlink()
    counts = work.export("s", sidecars=True, text_suffix=".caption", max_failures=0.9)
    assert (counts.ok, dict(counts.failed)) == (2, {"image_gone": 1})
    assert "no text was written for 1 of 3 images" in caplog.text
    assert "(image_gone 1; first: trip/why?.png)" in caplog.text


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    work: Workspace, tmp_path: Path
) -> None:
    folder, here = tmp_path / "photos/trip", process_namespace()
    dead, alive = f".{here}.{2**30}.deadbeef.tmp", f".{here}.{os.getpid()}.deadbeef.tmp"
    theirs = ".notes.1.deadbeef.tmp"
    for name in (dead, alive, theirs):
        (folder / name).write_text("half")
    os.utime(folder / theirs, (0, 0))
    work.export("s", sidecars=True, text_suffix=".caption")
    found = {path.name for path in folder.iterdir() if path.name.startswith(".")}
    assert found == {alive, theirs}


def test_of_two_images_with_one_text_file_the_first_ones_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = tmp_path / "photos"
    pool.mkdir()
    for number, name in enumerate(("a.jpg", "a.png", "b.jpg")):
        (pool / name).write_bytes(photo(number, name))
        (pool / name).with_suffix(".txt").write_text("x")
    work = mixed(pool, tmp_path / "work")
    add_captions(work, tmp_path, ["one", "two", "three"])
    work.mix("synthetic", synthetic="c", out="s")
    counts = work.export("s", sidecars=True, text_suffix=".caption")
    assert (counts.ok, dict(counts.dropped)) == (2, {"shares_text_file": 1})
    assert (pool / "a.caption").read_text() == "one"
    assert "no text was written for 1 images that share a text file" in caplog.text


def test_kohyas_lines_can_be_beside_the_originals(work: Workspace, tmp_path: Path) -> None:
    work.export("both", sidecars=True, text_suffix=".caption", format="kohya")
    assert (tmp_path / "photos/IMG_1.caption").read_text() == "first\nfirst\na dog\n"


def test_a_linked_folder_gets_no_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(photo(0, "a.jpg"))
    (tmp_path / "photos/a.txt").write_text("x")
    write_photos(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos/linked")
    work = open_workspace(str(tmp_path / "photos"), str(tmp_path / "work"), follow_links=True)
    work.mix("raw")
    before = contents(tmp_path / "elsewhere")
    counts = work.export("raw", sidecars=True, text_suffix=".caption")
    assert (counts.ok, dict(counts.dropped)) == (1, {"linked_folder": 3})
    assert contents(tmp_path / "elsewhere") == before
    message = "no text was written for 3 images in linked folders (first: linked/IMG_1.JPG)"
    assert message in caplog.text
    assert "--overwrite" not in caplog.text  # files behind links are never replaced


def test_the_command_line(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--work", str(tmp_path / "work"), "--subset", "s"]
    photos = str(tmp_path / "photos")
    assert main(["export", "--sidecars", photos, "--text-suffix", ".caption", *place]) == 0
    assert (tmp_path / "photos/trip/why?.caption").read_text() == "a why"
    assert "3 text files written, 0 up to date" in capsys.readouterr().err
    assert main(["export", photos, *place, "--sidecars", "--out", "x"]) == 2
    assert "remove --out and --push" in capsys.readouterr().err


def test_a_pool_of_tars_has_no_place_for_texts(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", shards=1, samples=1)
    work = mixed(tmp_path / "pool", tmp_path / "work")
    with pytest.raises(
        UserError, match="requires a local folder of image files.*use --format files"
    ):
        work.export("raw", sidecars=True)
