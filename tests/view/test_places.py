"""Reviews follow their samples when files are added to a folder, removed or renamed."""

from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes, sample_members, tar_bytes

from capmix.pool.sample import uid_from_path
from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.view.workbench import Query, Start, Workbench
from capmix.workspace import Workspace, open_workspace


def write(folder: Path, name: str, seed: int, text: str = "a text") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(image_bytes(seed))
    (folder / f"{name}.txt").write_text(text)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four files, two in each shard."""
    monkeypatch.setattr("capmix.pool.pool.FILES_PER_SHARD", 2)
    for number in range(4):
        write(tmp_path / "pool", f"im{number}", number, f"raw {number}")
    return tmp_path / "pool"


def bench(pool: Path) -> Workbench:
    """Open the workbench with an index of the current files."""
    work: Workspace = open_workspace(str(pool), str(pool.parent / "work"))
    work.index()
    return make_workbench(work.catalog, ViewSettings(author="ann"))


def edit(one: Workbench, name: str, **wanted: Any) -> None:
    row = next(row for row in rows(one) if row["key"] == f"{name}.jpg")
    if "text" in wanted:
        wanted |= {"base": "raw", "digest": row["texts"][0]["digest"]}
    one.act(row["shard"], row["uid"], row["version"], wanted)


def rows(one: Workbench) -> list[dict[str, Any]]:
    return list(one.listed(Query(), Start())["rows"])


def edits(one: Workbench) -> dict[str, str]:
    """Return the texts in the parts, by key."""
    found: dict[str, str] = {}
    for shard in one.shards:
        table = one.catalog.store.read_table(f"captions/edited/{shard.name}.parquet")
        found |= {row["key"]: row["text"] for row in table.to_pylist() if row["text"]}
    return found


def test_edits_follow_their_files_into_other_shards(pool: Path) -> None:
    one = bench(pool)
    for number in range(4):
        edit(one, f"im{number}", text=f"edit {number}")
    one.save()
    before = edits(one)
    assert len(before) == 4
    write(pool, "a", 77)
    again = bench(pool)
    assert again.fold(everything=True).no_sample == 0
    assert edits(again) == before
    assert again.about()["counts"]["edited"] == 4
    assert again.listed(Query(keep="stale"), Start())["rows"] == []
    edit(again, "im1", text="edited again")  # now in another shard
    (pool / "a.jpg").unlink()
    last = bench(pool)
    last.fold(everything=True)
    assert edits(last) == before | {"im1.jpg": "edited again"}
    assert last.undo()["rows"][0]["review"]["text"] == "edit 1"
    assert last.undo()["rows"][0]["key"] == "im3.jpg"


def test_edits_follow_a_file_that_is_renamed(pool: Path) -> None:
    one = bench(pool)
    edit(one, "im0", text="mine")
    edit(one, "im3", decision="reject", tags=["x"])
    for suffix in ("jpg", "txt"):
        (pool / f"im0.{suffix}").rename(pool / f"zz.{suffix}")
        (pool / f"im3.{suffix}").rename(pool / f"aa.{suffix}")
    again = bench(pool)
    assert again.fold(everything=True).no_sample == 0
    assert edits(again) == {"zz.jpg": "mine"}
    found = again.listed(Query(keep="rejected"), Start())["rows"]
    assert [(row["key"], row["review"]["tags"], row["review"]["stale"]) for row in found] == [
        ("aa.jpg", ["x"], [])
    ]
    edit(again, "zz", text="mine too")
    for suffix in ("jpg", "txt"):
        (pool / f"zz.{suffix}").rename(pool / f"b.{suffix}")
    last = bench(pool)
    assert last.fold(everything=True).no_sample == 0
    assert edits(last) == {"b.jpg": "mine too"}


def test_an_edit_of_a_file_that_is_gone_is_counted_and_comes_back_with_it(pool: Path) -> None:
    one = bench(pool)
    edit(one, "im0", text="mine")
    edit(one, "im1", text="another")
    (pool / "im0.jpg").rename(pool / "../kept.jpg")
    again = bench(pool)
    found = again.fold(everything=True)
    assert found.no_sample == 1
    assert "1 reviews of samples that are not in the pool (kept in the journal)" in found.line()
    about = again.about()
    assert (about["journal"]["noSample"], about["counts"]["edited"]) == (1, 1)
    assert "1 reviews of samples" in again.save()["saved"]
    assert edits(again) == {"im1.jpg": "another"}
    (pool / "../kept.jpg").rename(pool / "im0.jpg")
    last = bench(pool)
    assert last.fold(everything=True).no_sample == 0
    assert edits(last) == {"im0.jpg": "mine", "im1.jpg": "another"}


def test_a_review_of_its_own_is_not_overwritten_by_that_of_a_copy(pool: Path) -> None:
    write(pool, "im1", 0, "raw 0")  # same image as im0
    one = bench(pool)
    edit(one, "im1", text="of the copy")
    edit(one, "im0", text="mine")
    (pool / "im0.jpg").unlink()
    again = bench(pool)
    assert again.fold(everything=True).no_sample == 1
    assert edits(again) == {"im1.jpg": "of the copy"}


def test_an_edit_is_given_to_none_of_two_copies(pool: Path) -> None:
    one = bench(pool)
    edit(one, "im0", text="mine")
    (pool / "im0.jpg").unlink()
    for name in ("x", "y"):
        write(pool, name, 0, "raw 0")
    again = bench(pool)
    assert again.fold(everything=True).no_sample == 1
    assert edits(again) == {}


def test_edits_follow_a_uid_into_another_tar(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    members = [sample_members(f"k{n}", n) for n in range(3)]
    (pool / "0.tar").write_bytes(tar_bytes(members[0] + members[1]))
    (pool / "1.tar").write_bytes(tar_bytes(members[2]))
    one = bench(pool)
    row = rows(one)[1]
    one.act("0", row["uid"], 0, {"tags": ["x"]})
    (pool / "0.tar").write_bytes(tar_bytes(members[0]))
    (pool / "1.tar").write_bytes(tar_bytes(members[1] + members[2]))
    again = bench(pool)
    assert [row["key"] for row in again.listed(Query(keep="tagged"), Start())["rows"]] == ["k1"]
    assert again.about()["journal"]["noSample"] == 0


def test_a_server_that_runs_finds_them_when_the_index_was_renewed(pool: Path) -> None:
    one = bench(pool)
    edit(one, "im2", text="mine")
    assert len(rows(one)) == 4
    for suffix in ("jpg", "txt"):
        (pool / f"im0.{suffix}").rename(pool / f"zz.{suffix}")
    bench(pool)
    rows(one)
    found = one.listed(Query(keep="edited"), Start())["rows"]
    assert [(row["shard"], row["uid"]) for row in found] == [("00000", uid_from_path("im2.jpg"))]


def test_a_damaged_index_of_one_shard_leaves_the_others_open(pool: Path) -> None:
    one = bench(pool)
    edit(one, "im0", text="mine")
    edit(one, "im3", text="another")
    path = Path(one.catalog.store.path("samples/00000.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    again = make_workbench(one.catalog, ViewSettings(author="ann"))
    assert again.about()["journal"]["noSample"] == 0
    found = again.listed(Query(shard="00001", keep="edited"), Start())["rows"]
    assert [row["key"] for row in found] == ["im3.jpg"]
