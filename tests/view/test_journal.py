"""The journal of edits loses no acknowledged edit, however the process ends."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.view.journal import JOURNAL, ConflictError, Journal, Review


def journal(folder: Path, author: str = "ann", **options: bool) -> Journal:
    return Journal(str(folder / "j"), author, now=lambda: "2026-01-02T03:04:05.000Z", **options)


def tag(one: Journal, uid: str, *tags: str, seen: int = -1) -> None:
    one.act("tag", [("00000", uid, seen, lambda review: replace(review, tags=tags))])


def test_what_was_acknowledged_is_there_after_a_cut_at_any_byte(tmp_path: Path) -> None:
    one = journal(tmp_path)
    for number in range(3):
        tag(one, f"u{number}", "ü")
    whole = (tmp_path / "j" / JOURNAL).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    assert len(ends) == 3
    for cut in range(0, len(whole) + 1, 7):
        folder = tmp_path / str(cut)
        (folder / "j").mkdir(parents=True)
        (folder / "j" / JOURNAL).write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        again = journal(folder)
        assert set(again.reviews("00000")) == {f"u{n}" for n in range(kept)}
        tag(again, "new", "x")
        assert set(journal(folder).reviews("00000")) == {*(f"u{n}" for n in range(kept)), "new"}
        assert journal(folder).damaged == 0


def test_a_full_disk_refuses_the_edit_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = journal(tmp_path)
    tag(one, "a", "x")
    before = (tmp_path / "j" / JOURNAL).read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; the edit was not saved"):
        tag(one, "b", "x")
    monkeypatch.undo()
    assert (tmp_path / "j" / JOURNAL).read_bytes() == before
    assert set(one.reviews("00000")) == {"a"}
    tag(one, "b", "x")
    assert set(journal(tmp_path).reviews("00000")) == {"a", "b"}


def test_a_damaged_line_is_counted_and_the_others_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = journal(tmp_path)
    for uid in "abc":
        tag(one, uid, "tag")
    path = tmp_path / "j" / JOURNAL
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"tag", b"gat")
    path.write_bytes(b"\n".join(lines))
    again = journal(tmp_path)
    assert (set(again.reviews("00000")), again.damaged) == ({"a", "c"}, 1)
    assert "skipped 1 damaged lines" in caplog.text
    hostile = [b"[]", b"{}", b'{"set": 1, "check": ""}', b"\xff\xfe", b"null", b"[" * 100_000]
    path.write_bytes(b"\n".join([*hostile, lines[0], b""]))
    again = journal(tmp_path)
    assert (set(again.reviews("00000")), again.damaged) == ({"a"}, len(hostile))


def test_a_damaged_line_that_was_undone_leaves_the_others_usable(tmp_path: Path) -> None:
    one = journal(tmp_path)
    tag(one, "a", "x")
    tag(one, "b", "gone")
    one.undo()
    tag(one, "c", "x")
    path = tmp_path / "j" / JOURNAL
    path.write_bytes(path.read_bytes().replace(b"gone", b"none", 1))
    again = journal(tmp_path)
    assert again.damaged == 1
    assert again.can_undo() == (True, False)
    found = again.undo()
    assert found is not None
    assert [change.uid for change in found[1]] == ["c"]
    assert again.redo() is not None
    tag(again, "d", "x")
    assert set(journal(tmp_path).reviews("00000")) == {"a", "c", "d"}


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [journal(tmp_path, f"author{n}") for n in range(4)]

    def write(number: int) -> None:
        for k in range(10):
            tag(writers[number], f"u{number}-{k}", "x")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    found = journal(tmp_path)
    assert len(found.reviews("00000")) == found.lines == 40
    assert found.damaged == 0


def test_an_old_version_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    one, other = journal(tmp_path), journal(tmp_path, "bob")
    tag(one, "a", "x", seen=0)
    with pytest.raises(ConflictError):
        tag(other, "a", "y", seen=0)
    tag(other, "a", "y", seen=other.version("00000", "a"))
    assert one.refresh() == {"00000"}
    assert one.reviews("00000")["a"].tags == ("y",)


def test_undo_is_of_the_author_and_leaves_what_others_changed(tmp_path: Path) -> None:
    one, other = journal(tmp_path), journal(tmp_path, "bob")
    tag(one, "a", "x")
    tag(one, "b", "x")
    tag(other, "b", "y")
    found = one.undo()
    assert found is not None
    assert found[1] == []  # bob changed it in between
    assert one.reviews("00000")["b"].tags == ("y",)
    found = one.undo()
    assert found is not None
    assert [change.uid for change in found[1]] == ["a"]
    assert one.can_undo() == (False, True)
    assert other.can_undo() == (True, False)
    tag(one, "c", "z")
    assert one.can_undo() == (True, False)  # a new action clears the redo stack


def test_what_changes_nothing_is_no_line(tmp_path: Path) -> None:
    one = journal(tmp_path)
    tag(one, "a", "x")
    tag(one, "a", "x")
    tag(one, "b")
    assert one.lines == 1
    line = json.loads((tmp_path / "j" / JOURNAL).read_bytes())
    assert line["by"] == "ann"
    assert line["set"][0][:2] == ["00000", "a"]


def test_who_only_looks_writes_no_journal(tmp_path: Path) -> None:
    one = journal(tmp_path, is_read_only=True)
    with pytest.raises(UserError, match="--read-only"):
        tag(one, "a", "x")
    assert not (tmp_path / "j").exists()
    assert Review().is_empty
