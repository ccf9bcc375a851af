"""Partial parts: what was added is found again, and nothing else, whatever becomes of the files."""

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from capmix.engine import partial as module
from capmix.engine.partial import PartialPart, place_of, remove_finished, shard_digest
from capmix.errors import UserError
from capmix.pool import Shard
from capmix.storage.store import Store

BATCHES = [
    [[f"key{3 * n + i}", 2**64 - 1, None, ["é\n", "stop"]] for i in range(3)] for n in range(3)
]
ALL = [entry for batch in BATCHES for entry in batch]


def part(place: Path | str, shard: str = "a", about: Any = "same") -> PartialPart:
    return PartialPart(Store(str(place)), "captions/s", shard, about)


def added(place: Path | str, batches: Sequence[Sequence[Any]] = BATCHES) -> None:
    one = part(place)
    for batch in batches:
        one.add(batch)
    one.close()


def only_file(place: Path) -> Path:
    (file,) = (path for path in place.glob(".partial/**/*") if path.is_file())
    return file


def test_nothing_is_written_before_the_first_entry(tmp_path: Path) -> None:
    one = part(tmp_path)
    assert list(one.entries()) == []
    one.add([])
    one.close()
    one.remove()
    assert list(tmp_path.iterdir()) == []


def test_entries_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    one = part(tmp_path)
    for count, batch in enumerate(BATCHES, 1):
        one.add([tuple(entry) for entry in batch])
        assert list(part(tmp_path).entries()) == ALL[: 3 * count]
    one.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_tail_that_is_torn_at_any_byte_costs_the_last_batch(tmp_path: Path) -> None:
    added(tmp_path)
    file = only_file(tmp_path)
    data = file.read_bytes()
    ends = [n + 1 for n, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 3
    for size in range(len(data)):
        file.write_bytes(data[:size])
        whole = sum(end - 1 <= size for end in ends)  # the newline itself may be missing
        assert list(part(tmp_path).entries()) == ALL[: 3 * whole]


def test_a_flipped_bit_costs_its_batch(tmp_path: Path) -> None:
    added(tmp_path)
    file = only_file(tmp_path)
    data = file.read_bytes()
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        found = list(part(tmp_path).entries())
        assert len(found) in (3, 6)
        assert all(one in ALL for one in found)


@pytest.mark.parametrize(("shard", "about"), [("a", "other"), ("b", "same"), ("a.b", "same")])
def test_entries_of_other_settings_and_shards_are_not_found_under_any_name(
    tmp_path: Path, shard: str, about: str
) -> None:
    added(tmp_path)
    file = only_file(tmp_path)
    other = part(tmp_path, shard, about)
    assert list(other.entries()) == []
    other.add(BATCHES[0])
    other.close()
    assert list(part(tmp_path).entries()) == ALL
    data = file.read_bytes()
    for path in tmp_path.glob(".partial/captions/s/*"):
        path.write_bytes(data)
    assert list(part(tmp_path, shard, about).entries()) == []


@pytest.mark.parametrize("text", [b"5", b'{"a": 1}', b'["a", null, [1]]', b"[[", b"\xff", b""])
def test_lines_with_a_good_checksum_and_other_content_are_harmless(
    tmp_path: Path, text: bytes
) -> None:
    added(tmp_path)
    one = part(tmp_path)
    with only_file(tmp_path).open("ab") as stream:
        stream.write(b"%s %s\n" % (one._check(text), text))
    assert [entry for entry in one.entries() if entry != [1]] == ALL


def test_names_and_settings_of_any_kind_have_a_key(tmp_path: Path) -> None:
    for about in ({"seed": 2**80, "p": float("nan")}, ["\ud800"], Path("a")):
        one = part(tmp_path, "\udcff", about)
        one.add(BATCHES[0])
        assert list(part(tmp_path, "\udcff", about).entries()) == BATCHES[0]
        one.remove()


def test_what_is_no_regular_file_and_long_lines_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added(tmp_path)
    file = only_file(tmp_path)
    os.mkfifo(f"{file}1")
    os.mkdir(f"{file}2")
    Path(f"{file}3").write_bytes(b"x" * 10_000)
    Path(f"{file}4").symlink_to("/dev/zero")
    monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    assert list(part(tmp_path).entries()) == ALL


def test_runs_that_compute_one_shard_at_once_write_files_of_their_own(tmp_path: Path) -> None:
    one, two = part(tmp_path), part(tmp_path)
    threads = [
        threading.Thread(target=lambda run=run: [run.add(b) for b in BATCHES * 50])
        for run in (one, two)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(part(tmp_path).entries())) == 2 * 50 * 9
    one.remove()
    assert list(part(tmp_path).entries()) == []
    two.add(BATCHES[0])  # it does not know yet that the part is committed
    two.remove()
    assert list(tmp_path.iterdir()) == []


def test_files_of_finished_shards_are_removed(tmp_path: Path) -> None:
    added(tmp_path)
    kept = part(tmp_path, "b")
    kept.add(BATCHES[0])
    kept.close()
    store = Store(str(tmp_path))
    done = {"captions/other": [Shard("b", "")], "captions/s": [Shard("a", "")]}
    before = list(store.files(".partial"))
    remove_finished(store, done, lambda: False)
    assert list(store.files(".partial")) == before
    remove_finished(store, done, lambda: True)
    (name,) = store.files(".partial")
    assert place_of(name) == ("captions/s", shard_digest("b"))


def test_slow_storage_is_synced_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync of 0.5 s is followed by at least 50 s without one."""
    now, synced = [0.0], []

    def sync(_: int) -> None:
        synced.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "fsync", sync)
    one = part(tmp_path)
    for _ in range(120):
        one.add(BATCHES[0])
        now[0] += 1
    assert synced == [5.0, 55.5, 106.0]


def test_storage_that_fails_for_a_while_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = part(tmp_path)
    one.add(BATCHES[0])

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(module._Appended, "write", fail)
    one.add(BATCHES[1])
    one.add(BATCHES[2])
    one.close()
    assert caplog.text.count("captions/s/a: cannot keep results before all of the shard is") == 1
    assert list(part(tmp_path).entries()) == ALL[:3]
    one.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module._Appended, "write", fail)
    with pytest.raises(UserError, match=r"cannot write .*\.partial/.*: No space left on device"):
        part(tmp_path).add(BATCHES[0])


def test_storage_that_cannot_append_gets_an_object_per_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    place = "memory://partial-chunks"
    store = Store(place)
    one = part(place)
    for second in range(90):
        now[0] = float(second)
        one.add([[second]])
        assert len(store.files(".partial")) == second // 30
    assert list(part(place).entries()) == [[n] for n in range(61)]
    one.close()
    assert sorted(part(place).entries()) == [[n] for n in range(90)]
    one.remove()
    assert store.files(".partial") == []


@pytest.mark.parametrize("ends", [["close"], ["close", "remove"], ["remove", "close"]])
@pytest.mark.parametrize("is_local", [True, False])
def test_what_is_added_after_the_end_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_local: bool, ends: list[str]
) -> None:
    place = tmp_path if is_local else f"memory://partial-late-{'-'.join(ends)}"
    one = part(place)
    one.add(BATCHES[0])
    for end in ends:
        getattr(one, end)()
    one.add(BATCHES[1])
    one.close()
    assert list(part(place).entries()) == ([] if "remove" in ends else BATCHES[0])
    assert caplog.text == ""
