import contextlib
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
from null_models import null_captions
from samples import image_bytes, sample_members, tar_bytes, write_pool

from capmix.cli.main import main
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.pool import BadSample, Pool, open_pool
from capmix.pool.local import FileTooLargeError, open_local, read_local
from capmix.workspace import open_workspace


def reasons(pool: Pool) -> dict[str, str]:
    return {
        sample.key: sample.reason if isinstance(sample, BadSample) else "ok"
        for shard in pool.shards
        for sample in pool.read(shard)
    }


def keys(pool: Pool) -> list[str]:
    return [key for key, reason in reasons(pool).items() if reason == "ok"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool of one image, beside a folder that is not part of it."""
    for name in ("pool", "outside/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pool/good.jpg").write_bytes(image_bytes(1))
    (tmp_path / "outside/secret.jpg").write_bytes(image_bytes(2))
    (tmp_path / "outside/secret.txt").write_text("a secret")
    (tmp_path / "outside/deep/more.jpg").write_bytes(image_bytes(3))
    return tmp_path / "pool"


def odd_entries(folder: Path) -> None:
    """Add one entry of each kind that is skipped, and some that are ignored."""
    (folder / "a.jpg").symlink_to("../outside/secret.jpg")
    (folder / "b.jpg").symlink_to(folder.parent / "outside/secret.jpg")
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "linked").symlink_to("../outside", target_is_directory=True)
    os.mkfifo(folder / "fifo.webp")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(folder / "s.jpg"))
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(image_bytes(4))
    (folder / os.fsdecode(b"\xff")).mkdir()
    (folder / os.fsdecode(b"\xff.md")).write_text("")
    (folder / "README.md").symlink_to("../outside/secret.txt")
    (folder / ".hidden.jpg").symlink_to("../outside/secret.jpg")
    (folder / "lost+found").mkdir()


def test_what_is_no_regular_file_in_the_pool_is_skipped_and_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd_entries(folder)
    assert reasons(open_pool(str(folder))) == {"good.jpg": "ok"}
    record, ignored = caplog.records
    assert record.getMessage() == (
        f"pool {folder}: 10 entries skipped (2 broken links, 2 links that leave the pool, 2 names "
        "that are not UTF-8, 1 FIFO, 1 device, 1 linked folder, 1 socket), for example 'a.jpg'. "
        "Use --follow-links to read linked files and folders"
    )
    assert ignored.getMessage() == f"pool {folder}: 1 file ignored (.md 1)"


def test_links_are_followed_on_request(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd_entries(folder)
    pool = open_pool(str(folder), follow_links=True)
    found = ["a.jpg", "b.jpg", "good.jpg", "linked/deep/more.jpg", "linked/secret.jpg"]
    assert reasons(pool) == dict.fromkeys(found, "ok")
    assert [s.text for s in pool.read(pool.shards[0])][-1] == "a secret"  # type: ignore[union-attr]
    record, ignored = caplog.records
    assert record.getMessage() == (
        f"pool {folder}: 7 entries skipped (2 broken links, 2 names that are not UTF-8, 1 FIFO, "
        "1 device, 1 socket), for example 'broken.png'"
    )
    assert ignored.getMessage() == f"pool {folder}: 2 files ignored (.md 2)"


def test_control_characters_in_a_skipped_name_are_escaped(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(folder / "\x1b[31m\nx\u202e.jpg")
    open_pool(str(folder))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"pool {folder}: 1 entry skipped (1 FIFO), for example '\\x1b[31m\\nx\\u202e.jpg'"
    )


def test_links_inside_the_pool_are_read(folder: Path) -> None:
    """Links as git-annex creates them; also if the pool's own path is a link."""
    (folder / "sub").mkdir()
    (folder / "sub/link.jpg").symlink_to("../good.jpg")
    (folder / "absolute.jpg").symlink_to(folder / "good.jpg")
    place = folder.parent / "place"
    place.symlink_to(folder, target_is_directory=True)
    (folder / "other.jpg").symlink_to(place / "good.jpg")
    expected = ["absolute.jpg", "good.jpg", "other.jpg", "sub/link.jpg"]
    assert keys(open_pool(str(folder))) == keys(open_pool(str(place))) == expected


def test_a_folder_is_listed_once_whatever_links_lead_to_it(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Links to the folder itself, to its parent, and 2^20 paths to one folder."""
    (folder / "self").symlink_to(".", target_is_directory=True)
    (folder / "up").symlink_to("..", target_is_directory=True)
    for level in range(20):
        (folder / f"d{level}").mkdir()
        for way in "ab":
            link = folder / f"d{level}/{way}"
            link.symlink_to(folder / f"d{level + 1}", target_is_directory=True)
    (folder / "d20").mkdir()
    (folder / "d20/x.jpg").write_bytes(image_bytes(5))
    pool = open_pool(str(folder), follow_links=True)
    outside = ["up/outside/deep/more.jpg", "up/outside/secret.jpg"]
    assert keys(pool) == ["d20/x.jpg", "good.jpg", *outside]
    (record,) = caplog.records
    assert "42 links to folders that are already listed" in record.getMessage()


@pytest.mark.parametrize("kind", ["link", "fifo", "broken", "loop"])
@pytest.mark.parametrize("suffix", ["txt", "json"])
def test_a_sample_whose_text_is_skipped_is_a_failed_row(
    folder: Path, kind: str, suffix: str
) -> None:
    """Without its JSON the sample would have another uid; without its txt it would have no text."""
    sidecar = folder / f"good.{suffix}"
    if kind == "fifo":
        os.mkfifo(sidecar)
    else:
        targets = {"link": "../outside/secret.txt", "broken": "nowhere", "loop": sidecar}
        sidecar.symlink_to(targets[kind])
    assert reasons(open_pool(str(folder))) == {"good.jpg": "unreadable_file"}
    before = open_pool(str(folder)).shards
    sidecar.unlink()
    sidecar.write_text("{}")
    assert reasons(open_pool(str(folder))) == {"good.jpg": "ok"}
    assert open_pool(str(folder)).shards != before


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "zero", "socket"])
def test_a_file_that_is_replaced_after_the_listing_is_a_failed_row(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(_: float) -> None:
        raise AssertionError("permanent errors are not retried")

    monkeypatch.setattr("capmix.storage.filesystem.time.sleep", wait)
    (folder / "sub").mkdir()
    (folder / "sub/secret.jpg").write_bytes(image_bytes(6))
    pool = open_pool(str(folder))
    (folder / "sub/secret.jpg").unlink()
    if kind == "folder":
        (folder / "sub").rmdir()
        (folder / "sub").symlink_to("../outside", target_is_directory=True)
    elif kind == "fifo":
        os.mkfifo(folder / "sub/secret.jpg")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(folder / "sub/secret.jpg"))
    else:
        target = "/dev/zero" if kind == "zero" else folder.parent / "outside/secret.jpg"
        (folder / "sub/secret.jpg").symlink_to(target)
    (bad,) = [s for s in pool.read(pool.shards[0]) if isinstance(s, BadSample)]
    assert (bad.key, bad.reason) == ("sub/secret.jpg", "unreadable_file")
    is_special = kind in ("fifo", "socket")
    expected = "not a regular file" if is_special else "use --follow-links to read it"
    assert expected in bad.detail
    assert len(reasons(pool)) == 2


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_shard_that_is_replaced_by_a_fifo_is_a_failed_row(
    tmp_path: Path, follow_links: bool, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    pool = open_pool(str(tmp_path), follow_links)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    (found,) = pool.read(pool.shards[0])
    assert isinstance(found, BadSample)
    assert found.reason == "unreadable_shard"
    assert "not a regular file" in found.detail


def test_the_error_for_a_pool_of_links_names_follow_links(tmp_path: Path) -> None:
    """The Hub's cache has this structure."""
    write_pool(tmp_path / "blobs", 2, 1)
    (tmp_path / "snapshot").mkdir()
    for number in range(2):
        name = f"{number:05d}.tar"
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    with pytest.raises(UserError, match=r"2 links that leave the pool.*Use --follow-links to"):
        open_pool(str(tmp_path / "snapshot"))
    for location, links in (("", True), ("/{00000..00001}.tar", False)):
        pool = open_pool(f"{tmp_path}/snapshot{location}", links)
        assert list(reasons(pool).values()) == ["ok", "ok"]
    named = open_pool(f"{tmp_path}/snapshot/00001.tar")
    assert list(reasons(named).values()) == ["ok"]


def test_the_fingerprint_of_a_link_depends_on_its_target(folder: Path) -> None:
    target = folder.parent / "outside/secret.jpg"
    (folder / "a.jpg").symlink_to(target)
    before = open_pool(str(folder), follow_links=True).shards
    assert open_pool(str(folder), follow_links=True).shards == before
    os.utime(target, (2**31, 2**31))
    assert open_pool(str(folder), follow_links=True).shards != before


def test_names_that_are_not_utf8_are_skipped_among_tars_and_read_inside_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = write_pool(tmp_path / "pool", 1, 1)
    (pool / os.fsdecode(b"caf\xe9.tar")).write_bytes(tar_bytes(sample_members("a", 7)))
    (pool / os.fsdecode(b"\xe9")).mkdir()
    work = open_workspace(str(pool), str(tmp_path / "w"))
    counts = work.index()
    assert counts is not None
    assert (counts.ok, counts.total) == (1, 1)
    assert "(2 names that are not UTF-8), for example 'caf\\udce9.tar'" in caplog.text


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert read_local(str(tmp_path), "a", 100, False) == b"x" * 100
    with pytest.raises(FileTooLargeError, match="larger than the limit of 99 bytes"):
        read_local(str(tmp_path), "a", 99, False)
    if Path("/proc/self/maps").exists():  # a regular file that reports no size
        with pytest.raises(FileTooLargeError, match="larger than the limit of 99 bytes"):
            read_local("/proc/self", "maps", 99, True)
    with open_local(str(tmp_path), "a", False) as stream:
        assert stream.read(3) == b"xxx"


def test_opening_files_leaves_no_descriptor_open(folder: Path) -> None:
    odd_entries(folder)
    (folder / "sub").mkdir()
    (folder / "sub/x.jpg").write_bytes(image_bytes(1))
    used = len(os.listdir("/dev/fd"))
    for name in ("sub/x.jpg", "a.jpg", "fifo.webp", "loop.png", "s.jpg", "sub", "none"):
        for follow_links in (False, True):
            with contextlib.suppress(OSError):
                open_local(str(folder), name, follow_links).close()
    assert len(os.listdir("/dev/fd")) == used


def linked_pool(tmp_path: Path) -> Path:
    """Write a pool of two linked folders of tars."""
    for number in range(2):
        write_pool(tmp_path / f"disk{number}", 1, 3)
        (tmp_path / "pool").mkdir(exist_ok=True)
        link = tmp_path / f"pool/part{number}"
        link.symlink_to(tmp_path / f"disk{number}", target_is_directory=True)
    return tmp_path / "pool"


def test_the_choice_is_remembered_and_reaches_worker_processes(tmp_path: Path) -> None:
    pool, place = linked_pool(tmp_path), str(tmp_path / "w")
    engine = EngineSettings(workers=2)
    with pytest.raises(UserError, match="2 linked folders"):
        open_workspace(str(pool), place)
    work = open_workspace(str(pool), place, follow_links=True, engine=engine)
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (6, 6)
    assert json.loads((tmp_path / "w/pool.json").read_text()) == {
        "pool": str(pool),
        "follow_links": True,
    }
    assert len(open_workspace(work=place).pool.shards) == 2
    with pytest.raises(UserError, match="2 linked folders"):
        open_workspace(work=place, follow_links=False)
    write_pool(pool, 1, 1)
    assert len(open_workspace(work=place, follow_links=False).pool.shards) == 1
    assert json.loads((tmp_path / "w/pool.json").read_text()) == {"pool": str(pool)}


def test_commands_have_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, work = str(linked_pool(tmp_path)), str(tmp_path / "w")
    mix = ["mix", pool, "--work", work, "--recipe", "raw"]
    assert main(mix) == 2
    assert "2 linked folders" in capsys.readouterr().err
    assert main([*mix, "--follow-links"]) == 0
    assert main(["export", "--work", work, "--subset", "raw", "--out", str(tmp_path / "out")]) == 0
    file = tmp_path / "p.yaml"
    file.write_text(f"pool: {pool}\nwork: {tmp_path / 'w2'}\nmix: {{recipes: [raw]}}\n")
    assert main(["run", str(file)]) == 2
    file.write_text(f"{file.read_text()}follow_links: true\n")
    assert main(["run", str(file)]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 on other systems")
def test_a_pool_whose_own_name_is_not_utf8_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / os.fsdecode(b"\xff")
    write_pool(pool, 1, 1)
    code = main(["mix", str(pool), "--work", str(tmp_path / "w"), "--recipe", "raw"])
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
