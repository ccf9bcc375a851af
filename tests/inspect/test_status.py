"""`capmix status` counts parts by stage; the stages are derived from the layout."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from null_models import failing_captions, null_captions, null_scores
from parts import HandMade, Made
from samples import sample_members, tar_bytes, write_pool

from capmix.inspect.status import status
from capmix.pool import Shard
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store
from capmix.workspace import Workspace, open_workspace

UID = f"{1:032x}"


def nested_pool(folder: Path, names: Sequence[str] = ("00000", "b/00000")) -> str:
    for number, name in enumerate(names):
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tar_bytes(sample_members(f"k{number}", number)))
    return str(folder)


def mixed(folder: Path) -> Workspace:
    work = open_workspace(str(write_pool(folder / "pool", 2, 4)), str(folder / "w"))
    work.index()
    work.run(partial(null_captions, work.pool))
    work.run(partial(null_scores, work.pool, work.store, ["raw", "null"]))
    work.mix("raw-top+synthetic", synthetic="null")
    work.mix("raw-top")
    return work


def test_a_shard_of_the_same_name_in_a_folder_is_no_stage(tmp_path: Path) -> None:
    work = open_workspace(nested_pool(tmp_path / "pool"), str(tmp_path / "w"))
    work.index()
    work.run(partial(null_captions, work.pool, "alt"))
    work.run(partial(null_scores, work.pool, work.store, ["raw", "alt"]))
    found = status(work.pool, work.store)
    assert [(one.stage, one.done, one.missing, one.stale) for one in found.stages] == [
        ("samples", 2, 0, 0),
        ("fields", 2, 0, 0),
        ("captions/alt", 2, 0, 0),
        ("scores/null/alt", 2, 0, 0),
        ("scores/null/raw", 2, 0, 0),
    ]


def test_a_shard_that_is_called_as_a_source_makes_nothing_stale(tmp_path: Path) -> None:
    work = open_workspace(nested_pool(tmp_path / "pool", ["alt"]), str(tmp_path / "w"))
    work.index()
    work.run(partial(null_captions, work.pool, "alt"))
    work.run(partial(null_scores, work.pool, work.store, ["alt"]))
    assert work.status()["scores/null/alt"].done == 1


@pytest.mark.parametrize("folder", ["captions/null", "scores/null/raw", "subsets"])
def test_parts_that_were_deleted_are_missing(tmp_path: Path, folder: str) -> None:
    work = mixed(tmp_path)
    shutil.rmtree(tmp_path / "w" / folder)
    stage = work.status()["subsets/raw-top30" if folder == "subsets" else folder]
    assert (stage.done, stage.missing) == (0, 1 if folder == "subsets" else 2)


def test_parts_without_markers_are_missing(tmp_path: Path) -> None:
    work = mixed(tmp_path)
    shutil.rmtree(tmp_path / "w/.markers/captions")
    stage = work.status()["captions/null"]
    assert (stage.done, stage.missing, stage.stale) == (0, 2, 0)


def test_annotations_and_embeddings_are_stages(tmp_path: Path) -> None:
    here = HandMade(tmp_path, {"b/0": [Made("a")], "c": [Made("b")]})
    for part in ("embeddings/lite/image/b/0", "columns/hand/b/0"):
        here.store.write_marker(part, Marker({}, {}, 1, Counts(ok=1)))
    found = status(Named(list(here.pool.shards)), here.store)  # type: ignore[arg-type]
    assert [(one.stage, one.done, one.missing) for one in found.stages] == [
        ("samples", 2, 0),
        ("embeddings/lite/image", 1, 1),
        ("scores/clip/raw", 2, 0),
        ("columns/hand", 1, 1),
    ]


def test_a_subset_is_stale_once_its_captions_are_others(tmp_path: Path) -> None:
    work = mixed(tmp_path)
    work.mix("raw", out="listed", where="in_list('few')", uids=uid_list(tmp_path))
    names = ("raw-top30", "raw-top30+null", "listed")
    for name in names:
        stage = work.status()[f"subsets/{name}"]
        assert (stage.done, stage.stale, stage.missing) == (1, 0, 0), name
    before = work.status()["subsets/raw-top30+null"]
    (tmp_path / "w/.markers/captions/null/00000.json").unlink()
    work.using(max_failures=1.0).run(partial(failing_captions, work.pool, [UID]))
    after = work.status()["subsets/raw-top30+null"]
    assert (after.done, after.stale, after.missing) == (0, 1, 0)
    assert (after.ok, after.bytes) == (before.ok, before.bytes)
    assert [work.status()[f"subsets/{name}"].stale for name in names] == [0, 1, 0]


def uid_list(folder: Path) -> dict[str, str]:
    (folder / "few.txt").write_text(f"{UID}\n")
    return {"few": str(folder / "few.txt")}


def test_a_subset_is_stale_where_a_part_is_no_longer_there(tmp_path: Path) -> None:
    work = mixed(tmp_path)
    (tmp_path / "w/.markers/scores/null/raw/00001.json").unlink()
    assert work.status()["subsets/raw-top30"].stale == 1
    work.run(partial(null_scores, work.pool, work.store, ["raw"]))
    assert work.status()["subsets/raw-top30"].done == 1
    write_pool(tmp_path / "pool", 3, 4)
    assert open_workspace(work=str(tmp_path / "w")).status()["subsets/raw-top30"].stale == 1


@dataclass
class Named:
    """The attributes of a pool that status uses."""

    shards: list[Shard]
    location: str = "pool"
    has_images: bool = True


class Counted:
    """A shard that counts how often its name is read."""

    reads = 0

    def __init__(self, name: str):
        self._name, self.fingerprint = name, ""

    @property
    def name(self) -> str:
        Counted.reads += 1
        return self._name


def test_the_work_grows_with_the_shards_and_no_faster(tmp_path: Path) -> None:
    reads = []
    for count in (20, 40):
        store = Store(str(tmp_path / str(count)))
        shards = [Counted(f"{number:05d}") for number in range(count)]
        for shard in shards:
            store.write_marker(f"captions/x/{shard.name}", Marker({}, {}, 1, Counts(ok=1)))
        Counted.reads = 0
        assert status(Named(shards), store)["captions/x"].done == count  # type: ignore[arg-type]
        reads.append(Counted.reads)
    assert reads[1] == 2 * reads[0]


def test_it_says_who_works_what_takes_disk_and_what_to_run_next(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool", 2, 4)), str(tmp_path / "my work"))
    place = f"--work '{tmp_path}/my work'"
    assert work.status().next == f"capmix caption {place} --source NAME --model MODEL"
    work.index()
    work.run(partial(null_captions, work.pool))
    assert work.status().next == f"capmix score {place}"
    work.run(partial(null_scores, work.pool, work.store, ["raw", "null"]))
    assert work.status().next == f"capmix mix {place} --recipe raw-top"
    work.mix("raw-top")
    found = work.status()
    assert found.next == f"capmix export {place} --subset raw-top30 --out DIR"
    assert found.disk["captions"] == found["captions/null"].bytes
    assert found.disk[".markers"] > 0
    assert found.lines()[-3] == "running: none"
    assert found.lines()[-1] == f"next: {found.next}"
    (tmp_path / "my work/.markers/captions/null/00000.json").unlink()
    again = f"capmix caption {place} --source null --model null"
    assert work.status().next == again
