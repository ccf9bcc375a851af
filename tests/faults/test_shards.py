"""Broken shards: each fault is one counted row, no other sample is lost, and the counts are the
same with one process and with several."""

import io
import os
import tarfile
from functools import partial
from pathlib import Path

import pytest
from null_models import NullScorer, null_captions
from samples import Member, image_bytes, sample_members, tar_bytes, write_pool

from capmix.engine.settings import EngineSettings
from capmix.engine.stage import Stage
from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.pool import Pool
from capmix.score.stage import saved_score_stage
from capmix.storage.draft import Draft
from capmix.storage.store import Store
from capmix.workspace import open_workspace

LONG = "x" * 200


def members(count: int = 4) -> list[Member]:
    return [one for i in range(count) for one in sample_members(f"k{i}", i)]


def with_garbage_in_the_middle() -> bytes:
    data = bytearray(tar_bytes(members()))
    middle = len(data) // 2 // 512 * 512
    data[middle : middle + 2048] = b"\xff" * 2048
    return bytes(data)


def with_links() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("k8.jpg", tarfile.SYMTYPE), ("k9.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, data in members():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def with_bytes_that_are_no_utf8() -> bytes:
    renamed = [(f"caf\udce9/{name}", data) for name, data in members()]
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as archive:
        for name, data in renamed:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def in_another_order() -> list[Member]:
    """Return members with the JSON first and the image last; one sample's members are apart."""
    found = [one for i in range(3) for one in reversed(sample_members(f"k{i}", i))]
    apart = sample_members("k3", 3)
    return [*found[:3], apart[0], *found[3:], *apart[1:]]


SHARDS: dict[str, tuple[bytes, int, dict[str, int]]] = {
    "truncated": (tar_bytes(members())[:-9000], 3, {"truncated_shard": 1}),
    "garbage in the middle": (with_garbage_in_the_middle(), 2, {"truncated_shard": 1}),
    "a page of HTML": (b"<html><body>404</body></html>" * 40, 0, {"not_a_tar": 1}),
    "no bytes": (b"", 0, {"not_a_tar": 1}),
    "an empty tar": (tar_bytes([]), 0, {}),
    "a key twice": (tar_bytes([*members(), *sample_members("k1", 7)]), 4, {"duplicate_key": 1}),
    "a uid twice": (tar_bytes([*members(), *sample_members("k9", 1)]), 4, {"duplicate_uid": 1}),
    "two images": (
        tar_bytes([*members(), ("k4.png", image_bytes(4, kind="PNG")), *sample_members("k4", 4)]),
        4,
        {"two_images": 1},
    ),
    "another order": (tar_bytes(in_another_order()), 3, {"no_json": 1, "duplicate_key": 1}),
    "names with ..": (tar_bytes([(f"../../etc/{n}", d) for n, d in members()]), 4, {}),
    "absolute names": (tar_bytes([(f"/etc/{n}", d) for n, d in members()]), 4, {}),
    "links": (with_links(), 4, {}),
    "long names": (tar_bytes([(f"{LONG}/{LONG}{n}", d) for n, d in members()]), 4, {}),
    "names that are no UTF-8": (with_bytes_that_are_no_utf8(), 4, {}),
    "json that is no object": (
        tar_bytes([*members(), ("k4.jpg", image_bytes(4)), ("k4.json", b"[1]")]),
        4,
        {"bad_json": 1},
    ),
    "no uid in the json": (
        tar_bytes([*members(), ("k4.jpg", image_bytes(4)), ("k4.json", b"{}")]),
        5,
        {},
    ),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_a_broken_shard_costs_what_is_broken(tmp_path: Path, kind: str) -> None:
    data, ok, failed = SHARDS[kind]
    pool = write_pool(tmp_path / "pool", shards=4, samples=5)
    (pool / "00002.tar").unlink()  # a gap in the numbers
    (pool / "00001.tar").write_bytes(data)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    (counts,) = work.run(partial(null_captions, work.pool))
    marker = work.store.read_marker("captions/null/00001")
    assert marker is not None
    assert (marker.counts.ok, dict(marker.counts.failed)) == (ok, failed)
    assert marker.rows_in == ok + sum(failed.values())
    assert counts.ok == 10 + ok
    listed = work.store.read_table("samples/00001.parquet")
    assert listed.num_rows == marker.rows_in
    assert not (tmp_path / "etc").exists()


def test_all_of_them_by_two_processes(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number, (data, _, _) in enumerate(SHARDS.values()):
        (pool / f"{number:05d}.tar").write_bytes(data)
    found = []
    for name, engine in (("one", EngineSettings()), ("two", EngineSettings(workers=2))):
        work = open_workspace(str(pool), str(tmp_path / name), max_failures=1.0, engine=engine)
        (counts,) = work.run(partial(null_captions, work.pool))
        files = sorted((tmp_path / name).rglob("*.parquet"))
        found.append((counts, [path.read_bytes() for path in files]))
    assert found[0] == found[1]
    assert found[0][0].ok == sum(ok for _, ok, _ in SHARDS.values())
    assert found[0][0].failed.total() == sum(sum(bad.values()) for _, _, bad in SHARDS.values())


def test_a_shard_that_changed_between_two_runs_is_made_again(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=2, samples=3)
    work = open_workspace(str(pool), str(tmp_path / "w"))
    work.run(partial(null_captions, work.pool))
    other = (tmp_path / "w/captions/null/00000.parquet").stat().st_mtime_ns
    (pool / "00001.tar").write_bytes(tar_bytes(sample_members("new", 77)))
    again = open_workspace(str(pool), str(tmp_path / "w"))
    (counts,) = again.run(partial(null_captions, again.pool))
    assert counts.ok == 4
    table = again.store.read_table("captions/null/00001.parquet")
    assert table["uid"].to_pylist() == [f"{77:032x}"] * 2
    assert (tmp_path / "w/captions/null/00000.parquet").stat().st_mtime_ns == other


@pytest.mark.parametrize("fails", [2, 99])
def test_reads_that_fail_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """A network file system returns EIO in the middle of a shard."""
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    pool = write_pool(tmp_path / "pool", shards=2, samples=6)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    left = [fails]
    opened = type(work.pool).open_tar

    class Flaky(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 15_000 and left[0]:
                left[0] -= 1
                raise OSError(5, "Input/output error")
            return super().read(min(size or 0, 4000))

    def open_tar(self, shard):  # type: ignore[no-untyped-def]
        return Flaky(opened(self, shard).detach())

    monkeypatch.setattr(type(work.pool), "open_tar", open_tar)
    (counts,) = work.run(partial(null_captions, work.pool))
    if fails == 2:
        assert (counts.ok, counts.total) == (12, 12)
        return
    assert counts.failed == {"unreadable_shard": 2}
    assert counts.ok > 0
    left[0] = 0
    work = work.using(retry_failed=True)
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (12, 12)


def embedded_scores(pool: Pool, store: Store) -> list[Stage]:
    """Return two stages of one job; the second one reads the parts of the first one."""
    return [embed_stage(pool, NullScorer()), saved_score_stage(store, NullScorer(), "raw")]


def test_a_changed_shard_is_recomputed_in_every_stage_of_a_job(tmp_path: Path) -> None:
    """One run is enough, although the input of the second stage changes only after the first."""
    pool = write_pool(tmp_path / "pool", shards=2, samples=3)

    def scored(name: str) -> bytes:
        work = open_workspace(str(pool), str(tmp_path / name))
        work.index()
        work.run(partial(embedded_scores, work.pool, work.store))
        return (tmp_path / name / "scores/null/raw/00001.parquet").read_bytes()

    before = scored("w")
    other = [m for i in range(3) for m in sample_members(f"00001000{i}", 100 + i)]
    other[0] = (other[0][0], image_bytes(777))
    (pool / "00001.tar").write_bytes(tar_bytes(other))
    after = scored("w")
    assert after != before
    assert after == scored("fresh")


def test_a_storage_that_fails_at_a_write_costs_an_attempt_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", 3, 4)), str(tmp_path / "w"))
    left, write = [2], Draft.write_bytes

    def flaky(self: Draft, name: str, data: bytes) -> None:
        if left[0] and name.endswith("1.parquet"):
            left[0] -= 1
            with self.writing(name):
                raise OSError(116, "Stale file handle")
        write(self, name, data)

    monkeypatch.setattr(Draft, "write_bytes", flaky)
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total, left) == (12, 12, [0])


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_pool(tmp_path / "pool" / name, 1, 1)
    listed = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="Permission denied: .*/pool/b"):
        open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
