"""Markers: a part without its files is recomputed, and files of the user are never moved."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import write_pool

from capmix.errors import UserError
from capmix.storage.compare import changes, same_settings
from capmix.storage.marker import Counts, Marker, marker_digest
from capmix.storage.store import Store
from capmix.workspace import Workspace, open_workspace


def opened(folder: Path) -> Workspace:
    """A pool of 2 shards with 4 samples each, captioned from a field."""
    pool = folder / "pool"
    if not pool.exists():
        write_pool(pool, 2, 4)
    work = open_workspace(str(pool), str(folder / "work"))
    work.caption("tags", model="field:caption")
    return work


def texts(folder: Path, subset: str) -> list[str]:
    table = open_workspace(str(folder / "pool"), str(folder / "work")).subset(subset).table()
    return [str(text) for text in table["text"].to_pylist()]


def test_a_subset_whose_file_is_deleted_is_made_again(tmp_path: Path) -> None:
    work = opened(tmp_path)
    work.mix("raw")
    shutil.rmtree(tmp_path / "work/subsets")
    work.mix("raw")
    assert len(texts(tmp_path, "raw")) == 8


def test_a_subset_killed_before_its_marker_is_not_taken_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = opened(tmp_path)
    work.mix("raw", out="s")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_marker", killed)
        with pytest.raises(KeyboardInterrupt):
            work.mix("raw", where="key like '%1'", out="s")
    with pytest.raises(UserError, match="no subset 's'"):
        texts(tmp_path, "s")
    work.mix("raw", out="s")
    assert len(texts(tmp_path, "s")) == 8


def test_none_and_a_default_are_different_settings() -> None:
    """top_k is None for a server that does not support it; recomputing captions costs money."""
    before, now, defaults = {"top_k": None}, {"top_k": 50}, {"top_k": 50}
    assert not same_settings(before, now, defaults)
    assert changes(before, now, defaults) == ["top_k None -> 50"]


def test_files_of_others_are_never_moved(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", 1, 2)
    foreign = tmp_path / "foreign/captions/train.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    work = open_workspace(str(pool), str(tmp_path / "work"))
    (tmp_path / "work/subsets").mkdir()
    notes = tmp_path / "work/subsets/notes.json"
    notes.write_text('{"mine": 1}')
    open_workspace(work=str(tmp_path / "work"))
    assert notes.exists()
    work.mix("raw")
    with pytest.raises(UserError, match="not a capmix export"):
        work.subset("raw").export(str(tmp_path / "foreign"))
    open_workspace(str(pool), str(tmp_path / "foreign"))
    assert foreign.exists()


def test_a_json_file_beside_a_shard_is_no_marker(tmp_path: Path) -> None:
    (tmp_path / "00000.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        Store(str(tmp_path), "_markers").read_marker_bytes("00000")


def test_a_deleted_source_may_be_captioned_with_other_settings(tmp_path: Path) -> None:
    work = opened(tmp_path)
    with pytest.raises(UserError, match="different settings"):
        work.caption("tags", model="field:uid")
    shutil.rmtree(tmp_path / "work/captions/tags")
    assert work.caption("tags", model="field:uid").ok == 8


def test_of_two_markers_the_newer_one_describes_the_part(tmp_path: Path) -> None:
    """For example after capmix 0.1 has run in a work directory of 0.2."""
    opened(tmp_path)
    marker = tmp_path / "work/.markers/captions/tags/00000.json"
    older = tmp_path / "work/captions/tags/00000.json"
    value = json.loads(marker.read_text())
    of_older = {name: value[name] for name in ("inputs", "config", "rows_in", "counts")}
    older.write_text(json.dumps(of_older | {"extra": {"by": "0.1"}}))
    os.utime(marker, (1, 1))
    opened(tmp_path)
    assert not older.exists()
    assert json.loads(marker.read_text())["extra"] == {"by": "0.1"}


def test_what_cannot_be_moved_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path)
    marker = tmp_path / "work/.markers/captions/tags/00000.json"
    older = tmp_path / "work/captions/tags/00000.json"
    marker.rename(older)

    def refused(*_: Any) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("capmix.storage.store.os.replace", refused)
    assert Store(str(tmp_path / "work")).read_marker("captions/tags/00000") is not None
    work = open_workspace(work=str(tmp_path / "work"))
    assert work.status()["captions/tags"].done == 2


def test_a_damaged_marker_is_a_missing_part(tmp_path: Path) -> None:
    work = opened(tmp_path)
    path = tmp_path / "work/.markers/samples/00000.json"
    path.write_bytes(path.read_bytes()[:-10])
    assert len(work.store.fingerprint("samples/00000")) == 32
    assert len(marker_digest(b'["provenance"]')) == 32
    assert opened(tmp_path).status()["samples"].done == 2


def test_provenance_is_no_part_of_the_digest() -> None:
    one, other = (
        json.dumps({"config": {"a": 1}, "provenance": {"versions": {"capmix": version}}}).encode()
        for version in ("0.2", "0.3")
    )
    assert marker_digest(one) == marker_digest(other)


def test_an_import_that_is_done_is_not_repeated(tmp_path: Path) -> None:
    work = opened(tmp_path)
    file = tmp_path / "c.csv"
    file.write_text(f"uid,text\n{0:032x},one\n{0:032x},two\nnobody,three\n")
    first = work.import_captions([str(file)], source="given")
    assert (first.matched, first.without, first.unknown, first.repeated) == (1, 7, 1, 1)
    part = tmp_path / "work/captions/given/00000.parquet"
    written = part.stat().st_mtime_ns
    assert work.import_captions([str(file)], source="given") == first
    assert part.stat().st_mtime_ns == written
    times = file.stat().st_mtime_ns
    known = work.store.fingerprint("captions/given/00000")
    part.unlink()
    work.import_captions([str(file)], source="given")
    assert work.store.fingerprint("captions/given/00000") == known
    file.write_text(file.read_text().replace("one", "six"))
    os.utime(file, ns=(times, times))  # the content decides, not the modification time
    work.import_captions([str(file)], source="given")
    table = work.store.read_table("captions/given/00000.parquet")
    assert table["text"].to_pylist()[0] == "six"
    assert work.store.fingerprint("captions/given/00000") != known
    file.write_text('uid,text\na,b,c,d\n"open')
    with pytest.raises(UserError, match=r"^import: "):
        work.import_captions([str(file)], source="given")


def test_arrays_of_one_size_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    found = []
    for value in (0.0, 1.0):
        with store.draft("embeddings/m/image/00000") as draft:
            draft.write_array(f"{draft.part}.npy", np.full((2, 3), value, np.float16))
            draft.commit(Marker({}, {"value": value > 2}, 2, Counts(2)))
        found.append(store.fingerprint("embeddings/m/image/00000"))
    assert found[0] != found[1]


def test_a_damaged_marker_is_one_line_in_mix(tmp_path: Path) -> None:
    work = opened(tmp_path)
    path = tmp_path / "work/.markers/captions/tags/00000.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="the marker of shard 00000 is damaged"):
        work.mix("synthetic", synthetic="tags")
