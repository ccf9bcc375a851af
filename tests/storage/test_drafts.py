"""Drafts: a part appears as a whole, one of two concurrent runs wins, no temporary files remain."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import small_world as world

from capmix.errors import UserError
from capmix.storage.draft import Draft, MadeMeanwhileError
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store
from capmix.storage.temporary import (
    ABANDONED_AFTER,
    Renewal,
    is_abandoned,
    process_namespace,
    temporary_name,
)

PART = "subsets/s"


def marker(**config: object) -> Marker:
    return Marker({}, config, 1, Counts(1))


def table(value: int) -> pa.Table:
    return pa.table({"a": [value]})


def commit(store: Store, value: int, **config: object) -> None:
    with store.draft(PART) as draft:
        draft.write_table(f"{PART}.parquet", table(value))
        draft.commit(marker(**config))


def test_nothing_is_seen_before_the_commit_and_nothing_is_left_without_one(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.draft(PART) as draft:
        draft.write_table(f"{PART}.parquet", table(1))
        assert not (tmp_path / f"{PART}.parquet").exists()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_files_of_the_earlier_form_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.draft(PART) as draft:
        draft.write_table(f"{PART}.parquet", table(1))
        draft.write_bytes(f"{PART}.npy", b"1")
        draft.commit(marker())
    commit(store, 2, seed=1)
    assert sorted(path.name for path in (tmp_path / "subsets").iterdir()) == ["s.parquet"]


def test_a_kill_between_files_and_marker_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file has the size of the old one, so that the old marker would match it."""
    store = Store(str(tmp_path))
    commit(store, 1, seed=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_marker", killed)
        with pytest.raises(KeyboardInterrupt):
            commit(store, 2, seed=2)
    assert store.read_marker(PART) is None
    assert not store.is_done(PART, {}, {"seed": 1})


def test_an_error_before_the_files_are_moved_leaves_the_earlier_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the marker is written."""
    store = Store(str(tmp_path))
    commit(store, 1, seed=1)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "prepare_marker", full)
        with pytest.raises(OSError, match="No space left"):
            commit(store, 2, seed=2)
    assert store.is_done(PART, {}, {"seed": 1})
    assert store.read_table(f"{PART}.parquet").equals(table(1))
    assert sorted(p.name for p in (tmp_path / "subsets").iterdir()) == ["s.parquet"]


def test_a_kill_cannot_leave_a_file_of_the_earlier_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataComp's tools would read an old .npy with other uids next to the new subset."""
    store = Store(str(tmp_path))
    with store.draft(PART) as draft:
        draft.write_table(f"{PART}.parquet", table(1))
        draft.write_bytes(f"{PART}.npy", b"1")
        draft.commit(marker(seed=1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for step in ("remove_marker", "put_in_place", "put_marker"):
        with monkeypatch.context() as patch:
            patch.setattr(Store, step, killed)
            with pytest.raises(KeyboardInterrupt):
                commit(store, 2, seed=2)
        assert not (tmp_path / f"{PART}.npy").exists()
        assert not store.is_done(PART, {}, {"seed": 1})
    commit(store, 2, seed=2)
    assert store.is_done(PART, {}, {"seed": 2})


def test_json_files_of_the_users_beside_parts_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "subsets").mkdir()
    theirs = tmp_path / f"{PART}.json"
    theirs.write_text('{"notes": 1}')
    commit(store, 1)
    commit(store, 2, seed=2)
    store.remove_marker(PART)
    assert theirs.read_text() == '{"notes": 1}'
    assert store.parts("") == []


def test_of_two_drafts_with_other_settings_the_second_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.draft(PART) as late:
        late.write_table(f"{PART}.parquet", table(2))
        commit(store, 1, seed=1)
        with pytest.raises(
            UserError, match="a concurrent run has written this part with different"
        ):
            late.commit(marker(seed=2))
    assert store.read_table(f"{PART}.parquet").equals(table(1))


def test_of_two_drafts_with_the_same_settings_the_first_stays(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.draft(PART) as late:
        late.write_table(f"{PART}.parquet", table(2))
        commit(store, 1, seed=1)
        with pytest.raises(MadeMeanwhileError):
            late.commit(marker(seed=1))
    assert store.read_table(f"{PART}.parquet").equals(table(1))


def test_many_commits_at_once_leave_a_marker_with_its_own_file(tmp_path: Path) -> None:
    refused: list[int] = []

    def run(value: int) -> None:
        store = Store(str(tmp_path))
        for _ in range(20):
            try:
                commit(store, value, seed=value)
            except UserError:
                refused.append(value)

    threads = [threading.Thread(target=run, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(str(tmp_path))
    made = store.read_marker(PART)
    assert made is not None
    assert store.read_table(f"{PART}.parquet").equals(table(made.config["seed"]))
    assert store.damage(made) == {}


def test_of_three_mixes_of_one_name_at_once_two_say_that_they_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seeds differ, and all runs write their files before any of them commits."""
    folder = world.write_world(tmp_path)
    work = world.opened(folder, str(folder / "work"))
    world.caption(work, "first")
    world.score(work)
    barrier, real, told = threading.Barrier(3), Draft.commit, []

    def together(draft: Draft, marker: Marker) -> Marker:
        if draft.part == PART:
            barrier.wait(20)
        return real(draft, marker)

    def run(seed: int) -> None:
        try:
            world.mix(world.opened(folder, str(folder / "work")), folder, seed)
        except UserError as error:
            told.append(str(error))
            if len(told) > 2:
                barrier.abort()

    monkeypatch.setattr(Draft, "commit", together)
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.setattr(Draft, "commit", real)
    assert len(told) == 2
    assert all(f"{PART}: a concurrent run has written this part" in one for one in told)
    made = work.store.read_marker(PART)
    assert made is not None
    assert work.store.damage(made) == {}
    alone = world.write_world(tmp_path / "alone")
    other = world.opened(alone, str(alone / "work"))
    world.caption(other, "first")
    world.score(other)
    world.mix(other, alone, made.config["seed"])
    for suffix in ("parquet", "npy"):
        name = f"work/{PART}.{suffix}"
        assert (folder / name).read_bytes() == (alone / name).read_bytes()


def test_a_name_identifies_its_process_and_namespace(tmp_path: Path) -> None:
    ours = tmp_path / temporary_name()
    ours.touch()
    assert f".{process_namespace()}.{os.getpid()}." in ours.name
    now = ours.stat().st_mtime
    assert not is_abandoned(str(ours), now)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for namespace, expected in ((process_namespace(), True), ("0" * 12, False)):
        path = tmp_path / f".{namespace}.{ended.pid}.01234567.tmp"
        path.touch()
        assert is_abandoned(str(path), now) == expected
        assert is_abandoned(str(path), now + ABANDONED_AFTER + 1)


def test_a_file_of_another_namespace_is_swept_when_nobody_renews_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "captions/a").mkdir(parents=True)
    living, left = (tmp_path / f"captions/a/.{c * 12}.1.01234567.tmp" for c in "0f")
    for path in (living, left):
        path.touch()
    os.utime(left, (time.time() - 2 * ABANDONED_AFTER,) * 2)
    store.sweep()
    assert living.exists()
    assert not left.exists()


def test_files_of_a_living_process_stay_however_old_they_are(tmp_path: Path) -> None:
    """For example after the machine was suspended, so that nothing was renewed."""
    path = tmp_path / temporary_name()
    path.touch()
    os.utime(path, (1, 1))
    assert not is_abandoned(str(path), time.time())


def test_many_scratch_folders_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(300):
                with Store(str(tmp_path)).scratch():
                    pass
        except UserError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_what_is_in_use_is_renewed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, (1, 1))
    renewal = Renewal(every=0.02)
    with renewal.of(str(path)):
        until = time.monotonic() + 20
        while path.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.02)
    assert path.stat().st_mtime > 2


def test_scratch_is_in_the_work_directory_and_is_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "work"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"work/.scratch/.{process_namespace()}.{ended.pid}.01234567.tmp"
    left.mkdir(parents=True)
    (left / "00").touch()
    with store.scratch() as folder:
        assert folder.startswith(str(tmp_path / "work/.scratch/"))
        assert not left.exists()
    assert not (tmp_path / "work/.scratch").exists()
    elsewhere = Store(str(tmp_path / "work"), scratch=str(tmp_path / "fast"))
    with elsewhere.scratch() as folder:
        assert folder.startswith(str(tmp_path / "fast/"))
    assert (tmp_path / "fast").is_dir()  # other runs may use it


def test_scratch_is_for_its_owner_alone(tmp_path: Path) -> None:
    with Store(str(tmp_path)).scratch() as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700
    remote = Store("memory://of-one", scratch=str(tmp_path))
    with remote.temporary_file("x") as (path, stream):
        stream.write(b"1")
        assert os.stat(path).st_mode & 0o077 == 0
    remote.release(path)
