"""`capmix verify` reads all files, and lists the damaged ones and how to recompute them."""

import os
import tarfile
from pathlib import Path

import pytest
import small_world as world

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.storage.store import Store
from capmix.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    world.write_world(tmp_path)
    made = world.opened(tmp_path, str(tmp_path / "work"))
    world.caption(made, "first")
    world.score(made)
    world.mix(made, tmp_path)
    world.export(made, str(tmp_path / "out"))
    return made


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(bytes(data))


def test_a_whole_work_directory_has_no_damage(work: Workspace, tmp_path: Path) -> None:
    found = work.verify(exports=[tmp_path / "out"], images=True)
    assert found.damaged == []
    # index, fields, embeddings, captions, two scores (two shards each); subset; export shard
    assert found.parts == 6 * 2 + 1 + 1
    assert found.samples == 8
    assert found.unknown == 0


def test_damaged_markers_cost_no_reads_of_their_neighbours(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of a folder are read once, and files only to compare them."""
    markers = sorted((tmp_path / "work/.markers/captions/tags").iterdir())
    parts = [f"captions/tags/{one.stem}" for one in markers]
    flip(markers[0], 30)
    hashed: list[str] = []
    damage = Store.damage
    monkeypatch.setattr(
        Store, "damage", lambda self, one: hashed.extend(one.files) or damage(self, one)
    )
    made_by = {one.part: one.made_by for one in work.verify().damaged}
    assert made_by[parts[0]].startswith("capmix caption --source tags --model field:")
    assert hashed.count(f"{parts[1]}.parquet") == 1


def test_damage_is_named_and_discarded(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--work", str(tmp_path / "work")]
    flip(tmp_path / "work/captions/tags/00001.parquet", 50)
    (tmp_path / "work/subsets/s.npy").unlink()
    flip(tmp_path / "work/.markers/samples/00000.json", 30)
    assert main(["verify", *place]) == 2
    out, said = capsys.readouterr()
    assert "captions/tags/00001.parquet" in out
    assert "capmix caption --source tags --model field:" in out
    assert "subsets/s.npy" in out
    assert "capmix mix --recipe RECIPE --out s" in out
    assert "the marker is damaged" in out
    assert "3 damaged" in out
    assert said.count("\n") == 1
    assert main(["verify", *place, "--discard"]) == 0
    again = world.opened(tmp_path, str(tmp_path / "work"))
    world.caption(again, "first")
    world.score(again)
    world.mix(again, tmp_path)
    assert again.verify().damaged == []


def test_an_export_and_the_pool_are_verified_too(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flip(out / "00000000.tar", 600)
    with tarfile.open(tmp_path / "pool/00000.tar") as archive:
        image = next(member for member in archive if member.name.endswith(".jpg"))
    flip(tmp_path / "pool/00000.tar", image.offset_data + 100)
    found = work.verify(exports=[out], images=True)
    assert [(one.file, one.made_by) for one in found.damaged] == [
        (f"{out}/00000000.tar", "capmix export"),
        ("00000/000000000", "restore the pool's shard from a copy"),
    ]


def test_images_of_an_export_are_verified_and_its_card_is_not(
    work: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "files"
    work.export("s", out, format="jsonl", samples_per_shard=50)
    (out / "README.md").write_text("filled in")
    assert work.verify(exports=[out]).damaged == []
    image = next((out / "images").rglob("*.jpg"))
    flip(image, 100)
    (damage,) = work.verify(exports=[out]).damaged
    assert damage.file == str(image)


def test_a_directory_that_is_no_export_is_one_line(work: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a directory written by `capmix export`"):
        work.verify(exports=[tmp_path / "nowhere"])


def test_what_is_no_regular_file_is_damage_and_nothing_waits_for_it(
    work: Workspace, tmp_path: Path
) -> None:
    captions = tmp_path / "work/captions/tags"
    for path in (captions / "00000.parquet", captions / "00001.parquet"):
        path.unlink()
    os.mkfifo(captions / "00000.parquet")
    (captions / "00001.parquet").mkdir()
    marker = tmp_path / "work/.markers/samples/00000.json"
    marker.unlink()
    marker.symlink_to("/dev/zero")
    found = {one.file: one.how for one in work.verify().damaged}
    assert found == {
        "captions/tags/00000.parquet": "not a regular file",
        "captions/tags/00001.parquet": "not a regular file",
        "samples/00000": "the marker is damaged",
    }
