import os
from collections import Counter
from pathlib import Path

import pytest

from capmix.errors import UserError
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store


def marker(**config: object) -> Marker:
    counts = Counts(1, Counter(), Counter(broken=1))
    return Marker({"pool": "10 bytes"}, config, 2, counts)


def test_done_is_what_has_a_matching_marker(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert not store.is_done("a/0", {"pool": "10 bytes"}, {})
    store.write_marker("a/0", marker(seed=1))
    assert store.is_done("a/0", {"pool": "10 bytes"}, {"seed": 1})
    assert not store.is_done("a/0", {"pool": "11 bytes"}, {"seed": 1})
    assert not store.is_done("a/0", {"pool": "10 bytes"}, {"seed": 2})
    assert store.read_marker("a/0") == marker(seed=1)
    assert store.parts("a") == ["a/0"]


def test_a_torn_marker_is_no_marker(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_marker("a/0", marker())
    (tmp_path / ".markers/a/0.json").write_text('{"inputs": {')
    assert store.read_marker("a/0") is None


def test_counts_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 rows in, but 1 accounted for"):
        Store(str(tmp_path)).write_marker("a", Marker({}, {}, 3, Counts(ok=1)))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(RuntimeError), store.writing("a/file") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert os.listdir(tmp_path / "a") == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write"):
        Store(str(tmp_path)).write_bytes("a/b", b"")


def test_works_on_an_fsspec_file_system() -> None:
    store = Store("memory://capmix-test-store")
    store.write_marker("x/y", marker())
    assert store.parts("x") == ["x/y"]
    assert store.is_done("x/y", {"pool": "10 bytes"}, {})
