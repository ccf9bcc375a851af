import os
from pathlib import Path

import pytest
from samples import image_bytes, write_pool

from capmix.errors import UserError
from capmix.pool import BadSample, Sample, open_pool


def test_embedded_pool_has_2300_samples_with_titles() -> None:
    pool = open_pool("embedded")
    samples = [s for shard in pool.shards for s in pool.read(shard)]
    assert len(samples) == 2300
    assert all(isinstance(sample, Sample) for sample in samples)
    assert len({sample.uid for sample in samples}) == 2300  # type: ignore[union-attr]


def test_folder_of_images_with_sidecars(tmp_path: Path) -> None:
    (tmp_path / "sub.dir").mkdir()
    (tmp_path / "one.JPG").write_bytes(image_bytes(1))
    (tmp_path / "one.txt").write_text("first text\n")
    (tmp_path / "sub.dir/two.v2.png").write_bytes(image_bytes(2, kind="PNG"))
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    pool = open_pool(str(tmp_path))
    (shard,) = pool.shards
    first, second = pool.read(shard)
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.key, first.text) == ("one.JPG", "first text")
    assert (second.key, second.text) == ("sub.dir/two.v2.png", None)
    assert first.uid != second.uid


def test_folder_sample_with_bad_json_fails_alone(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(image_bytes())
    (tmp_path / "a.json").write_text("{")
    pool = open_pool(str(tmp_path))
    first, second = pool.read(pool.shards[0])
    assert isinstance(first, BadSample)
    assert first.reason == "bad_json"
    assert isinstance(second, Sample)


def test_fingerprint_follows_the_bytes_of_images_and_sidecars(tmp_path: Path) -> None:
    write_pool(tmp_path / "tars", shards=1)
    tar = tmp_path / "tars/00000.tar"
    before = open_pool(str(tmp_path / "tars")).shards
    assert open_pool(str(tar)).shards == before
    os.utime(tar, (1, 1))
    assert open_pool(str(tmp_path / "tars")).shards != before


def test_nested_shards_keep_their_folder_in_the_name(tmp_path: Path) -> None:
    write_pool(tmp_path / "a", 1)
    write_pool(tmp_path / "b", 1)
    names = [shard.name for shard in open_pool(str(tmp_path)).shards]
    assert names == ["a/00000", "b/00000"]


@pytest.mark.parametrize("location", ["missing", "empty", "ftp://host/pool"])
def test_no_pool_is_one_clear_line(tmp_path: Path, location: str) -> None:
    (tmp_path / "empty").mkdir()
    where = location if "://" in location else str(tmp_path / location)
    with pytest.raises(UserError, match="pool"):
        open_pool(where)


def test_a_shard_and_its_compressed_twin_are_refused(tmp_path: Path) -> None:
    write_pool(tmp_path, shards=1)
    (tmp_path / "00000.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"both 00000\.tar and 00000\.tar\.gz"):
        open_pool(str(tmp_path))


def test_two_images_of_one_uid_are_one_sample_and_one_failed_row(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg"):
        (tmp_path / name).write_bytes(image_bytes(1))
    (tmp_path / "a.json").write_text('{"uid": "x1"}')
    pool = open_pool(str(tmp_path))
    found = list(pool.read(pool.shards[0]))
    assert [one.key for one in found] == ["a.jpg", "a.png", "b.jpg"]
    assert [getattr(one, "reason", "ok") for one in found] == ["ok", "duplicate_uid", "ok"]


def test_hidden_folders_and_lost_found_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pool(tmp_path, 1, 1)
    for name in (".Trash-0", "lost+found"):
        (tmp_path / name).mkdir()
    listed = os.scandir

    def scandir(path: str) -> object:
        if path.endswith(("Trash-0", "found")):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [shard.name for shard in open_pool(str(tmp_path)).shards] == ["00000"]
