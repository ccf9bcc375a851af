"""Exports of image files under their original names."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from photos import PHOTOS, add_captions, mixed, photo, write_photos
from samples import image_bytes, sample_members, tar_bytes

from capmix.errors import UserError
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def photos(tmp_path: Path) -> Workspace:
    return mixed(write_photos(tmp_path / "photos"), tmp_path / "work")


def own(folder: Path) -> dict[str, bytes]:
    """Return all files except capmix's lists."""
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (name := str(path.relative_to(folder)))
        and not name.startswith(("_markers/", ".manifest/", "_capmix_export.json", "README"))
    }


def expected() -> dict[str, bytes]:
    found = {}
    for number, (name, text) in enumerate(PHOTOS.items()):
        found[name] = photo(number, name)
        found[str(Path(name).with_suffix(".txt"))] = text.encode()
    return dict(sorted(found.items()))


def test_images_and_texts_have_the_paths_and_names_of_the_pool(
    photos: Workspace, tmp_path: Path
) -> None:
    counts = photos.export("raw", str(tmp_path / "out"), format="files")
    assert (counts.ok, counts.total) == (3, 3)
    assert own(tmp_path / "out") == expected()


def test_the_suffix_of_texts_is_chosen(photos: Workspace, tmp_path: Path) -> None:
    photos.export("raw", str(tmp_path / "out"), format="files", text_suffix=".caption")
    assert (tmp_path / "out/trip/why?.caption").read_text() == "third"
    with pytest.raises(UserError, match="is a suffix of image or JSON files"):
        photos.export("raw", str(tmp_path / "x"), format="files", text_suffix=".PNG")


@pytest.mark.parametrize("form", ["files", "kohya", "llava", "imagefolder"])
def test_processes_and_kills_change_no_byte(photos: Workspace, tmp_path: Path, form: Any) -> None:
    photos.export("raw", str(tmp_path / "one"), format=form)
    photos.export("raw", str(tmp_path / "two"), format=form)
    for name in (
        "IMG_1.JPG",
        "train/IMG_1.JPG",
        "_markers/00000000.json",
    ):  # as if the run had been killed
        (tmp_path / "two" / name).unlink(missing_ok=True)
    assert photos.export("raw", str(tmp_path / "two"), format=form, workers=2).ok == 3
    found = [
        {str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "one", tmp_path / "two")
    ]
    assert found[0].keys() == found[1].keys()
    assert {n: b for n, b in found[0].items() if n.count("_markers") == 0} == {
        n: b for n, b in found[1].items() if n.count("_markers") == 0
    }


def test_a_deleted_image_comes_back(photos: Workspace, tmp_path: Path) -> None:
    photos.export("raw", str(tmp_path / "out"), format="files")
    (tmp_path / "out/IMG_1.JPG").unlink()
    photos.export("raw", str(tmp_path / "out"), format="files")
    assert own(tmp_path / "out") == expected()


def test_files_of_others_are_kept_until_they_may_be_replaced(
    photos: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    (out / "trip").mkdir(parents=True)
    (out / "trip/why?.txt").write_text("mine")
    (out / "IMG_1.JPG").write_bytes(b"mine too")
    (out / "metadata.json").write_text("mine as well")
    for _ in range(2):
        counts = photos.export("raw", str(out), format="kohya")
        assert (counts.ok, dict(counts.dropped)) == (1, {"kept_existing": 2})
    assert "kept 2 existing files (first: IMG_1.JPG) and dropped the" in caplog.text
    assert (out / "trip/why?.txt").read_text() == "mine"
    assert (out / "IMG_1.JPG").read_bytes() == b"mine too"
    assert not (out / "IMG_1.txt").exists()  # the existing text belongs to another image
    assert (out / "metadata.json").read_text() == "mine as well"
    assert list(json.loads((out / "metadata.new.json").read_text("utf-8"))) == [
        "trip/day 1/Zürich.jpg"
    ]
    assert photos.export("raw", str(out), format="files", overwrite=True).ok == 3
    assert own(out).items() >= expected().items()


def test_a_file_that_others_put_there_with_the_same_bytes_is_not_removed_later(
    photos: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "IMG_1.JPG").write_bytes(image_bytes(0))
    assert photos.export("raw", str(out), format="files").ok == 3
    photos.export("raw", str(out), format="csv")
    assert list(own(out)) == ["IMG_1.JPG", "captions.csv"]


def test_a_killed_export_of_another_subset_leaves_nothing(
    photos: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    placed: list[str] = []

    def killed(*given: Any) -> Any:
        placed.append("")
        if len(placed) > 3:
            raise KeyboardInterrupt
        return place(*given)

    from capmix.export import folder

    place = folder._place
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder, "_place", killed)
        photos.export("raw", str(out), format="files")
    assert len(own(out)) == 3
    photos.export("raw", str(out), format="llava")
    assert list(own(out)) == ["IMG_1.JPG", "llava.json", "trip/day 1/Zürich.jpg", "trip/why?.png"]


def test_a_full_disk_leaves_no_half_file(
    photos: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from capmix.export import folder

    def full(data: bytes) -> Any:
        def make(inside: int, name: str) -> None:
            if data == b"second":
                file = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=inside)
                os.write(file, b"sec")
                os.close(file)
                raise OSError(errno.ENOSPC, "No space left on device")
            writer(data)(inside, name)

        return make

    writer = folder._writer
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_writer", full)
        with pytest.raises(UserError, match=r"cannot write .*Zürich\.txt: No space left on device"):
            photos.export("raw", str(tmp_path / "out"), format="files")
    assert not [p for p in (tmp_path / "out/trip").rglob("*") if p.name.endswith((".tmp", ".txt"))]
    photos.export("raw", str(tmp_path / "out"), format="files")
    assert own(tmp_path / "out") == expected()


def test_hard_links_take_no_space_and_copies_are_made_of_what_changed(
    photos: Workspace, tmp_path: Path
) -> None:
    photos.export("raw", str(tmp_path / "out"), format="files", link="hard")
    assert own(tmp_path / "out") == expected()
    linked = (tmp_path / "out/IMG_1.JPG").stat()
    assert linked.st_ino == (tmp_path / "photos/IMG_1.JPG").stat().st_ino
    assert linked.st_nlink == 2


def test_another_disk_has_no_hard_links(
    photos: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any, **more: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("capmix.export.folder.os.link", refused)
    with pytest.raises(UserError, match=r"--link hard: cannot link IMG_1\.JPG"):
        photos.export("raw", str(tmp_path / "out"), format="files", link="hard")


def test_links_in_the_target_lead_nowhere(photos: Workspace, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("precious")
    (out / "trip").symlink_to(outside)
    (out / "IMG_1.txt").symlink_to(outside / "victim")
    (out / "IMG_1.JPG").symlink_to(outside / "new")
    counts = photos.export("raw", str(out), format="files")
    assert dict(counts.dropped) == {"kept_existing": 3}
    photos.export("raw", str(out), format="files", overwrite=True)
    assert (out / "IMG_1.txt").read_text() == "first"
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"victim": "precious"}


HOSTILE = ["../../up", "/etc/absolute", "a\n\x1b[2J", "con", ".d/x", "_markers/x", "x" * 400,
           "back\\slash", "ok", "OK", "e\u0301", "\u00e9"]  # fmt: skip


def test_names_of_a_tar_stay_inside_and_are_written_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [
        member
        for number, key in enumerate(HOSTILE)
        for member in sample_members(key, number, f"text {number}")
    ]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    work = mixed(tmp_path / "pool", tmp_path / "work")
    out = tmp_path / "deep/er/out"
    out.parent.mkdir(parents=True)
    assert work.export("raw", str(out), format="files").ok == len(HOSTILE)
    found = own(out)
    assert len(found) == 2 * len(HOSTILE)
    assert sorted(found.values()) == sorted(
        one for n in range(len(HOSTILE)) for one in (image_bytes(n), f"text {n}".encode())
    )
    for name, data in found.items():
        if name.endswith(".txt"):
            number = int(data.decode().split()[1])
            assert found[name.replace(".txt", ".jpg")] == image_bytes(number)
        assert name.startswith("00000/")
        assert name.isprintable()
    assert len({name.casefold() for name in found}) == len(found)
    assert "(first: '00000/" in caplog.text
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["er"]
    assert [p.name for p in (tmp_path / "deep/er").iterdir()] == ["out"]


def test_images_that_would_share_a_text_have_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = tmp_path / "photos"
    pool.mkdir()
    for number, name in enumerate(("a.jpg", "a.png", "A.jpg", "a-2.jpg")):
        (pool / name).write_bytes(photo(number, name))
        (pool / name).with_suffix(".txt").write_text("a text")
    work = mixed(pool, tmp_path / "work")
    assert work.export("raw", str(tmp_path / "out"), format="files").ok == 4
    images = {n: d for n, d in own(tmp_path / "out").items() if not n.endswith(".txt")}
    assert images == {
        "A.jpg": image_bytes(2),
        "a-2.jpg": image_bytes(3),
        "a-3.jpg": image_bytes(0),
        "a-4.png": image_bytes(1, kind="PNG"),
    }
    assert "renamed 2 images" in caplog.text


def test_several_texts_of_an_image_are_lines_of_one_file(photos: Workspace, tmp_path: Path) -> None:
    add_captions(photos, tmp_path, [f"two\nlines {number}" for number in range(3)])
    photos.export("both", str(tmp_path / "out"), format="files")
    assert (tmp_path / "out/IMG_1.txt").read_text() == "first\ntwo lines 0\n"


def test_other_places_and_pools_are_refused(photos: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="requires a local --out"):
        photos.export("raw", "memory://x", format="files")
    with pytest.raises(UserError, match="requires --out DIR"):
        photos.export("raw", format="files")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/0.tar").write_bytes(tar_bytes(sample_members("a", 1)))
    tars = mixed(tmp_path / "tars", tmp_path / "work2")
    with pytest.raises(UserError, match="--link hard requires a local folder"):
        tars.export("raw", str(tmp_path / "out"), format="files", link="hard")


def test_verify_names_an_image_that_was_changed(photos: Workspace, tmp_path: Path) -> None:
    photos.export("raw", str(tmp_path / "out"), format="kohya")
    assert not photos.verify(str(tmp_path / "out")).damaged
    path = tmp_path / "out/trip/day 1/Zürich.jpg"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (damage,) = photos.verify(str(tmp_path / "out")).damaged
    assert "trip/day 1/Zürich.jpg" in damage.file


def test_a_link_to_a_file_that_changed_meanwhile_becomes_a_copy(tmp_path: Path) -> None:
    from capmix.export.folder import TargetFolder, hard_link

    (tmp_path / "out").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"new")
    make = hard_link(str(tmp_path / "a.jpg"), b"old")
    assert TargetFolder(str(tmp_path / "out")).put("a.jpg", b"old", make) == "written"
    assert (tmp_path / "out/a.jpg").read_bytes() == b"old"
    assert (tmp_path / "a.jpg").read_bytes() == b"new"


@pytest.mark.parametrize("options", [{"format": "kohya"}, {"sidecars": True}])
def test_a_composed_text_is_not_written_for_another_picture_of_the_same_name(
    photos: Workspace, tmp_path: Path, options: dict[str, Any]
) -> None:
    recipe = tmp_path / "sks.yaml"
    recipe.write_text('{name: sks, about: x, clauses: [{source: raw, text: "sks, {raw}"}]}')
    photos.mix(str(recipe))
    (tmp_path / "photos/IMG_1.JPG").write_bytes(image_bytes(7))
    again = open_workspace(work=str(tmp_path / "work"))
    again.index()
    place = {} if "sidecars" in options else {"out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="subset sks refers to .*samples, whose shard"):
        again.export("sks", **place, **options)
    assert not (tmp_path / "out").exists()


def test_no_image_is_put_beside_a_text_of_somebody_else(photos: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "trip").mkdir(parents=True)
    (out / "trip/why?.txt").write_text("about another picture")
    for _ in range(2):
        counts = photos.export("raw", str(out), format="files")
        assert (counts.ok, dict(counts.dropped)) == (2, {"kept_existing": 1})
        assert not (out / "trip/why?.png").exists()
    assert (out / "trip/why?.txt").read_text() == "about another picture"
    (out / "trip/why?.txt").unlink()
    assert photos.export("raw", str(out), format="files").ok == 3
    assert own(out) == expected()


def test_an_image_that_was_there_already_comes_back_when_its_owner_moves_it(
    photos: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "IMG_1.JPG").write_bytes(image_bytes(0))
    assert photos.export("raw", str(out), format="files").ok == 3
    assert not photos.verify(str(out)).damaged
    (out / "IMG_1.JPG").unlink()
    assert [one.how for one in photos.verify(str(out)).damaged] == ["missing"]
    assert photos.export("raw", str(out), format="files").ok == 3
    assert own(out) == expected()
    photos.export("raw", str(out), format="csv")  # the image is now one of capmix's own files
    assert list(own(out)) == ["captions.csv"]
    lists = sorted(path.name for path in (out / ".manifest").iterdir())
    assert lists == ["export.txt"]
