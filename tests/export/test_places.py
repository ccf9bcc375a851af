"""Directories that an export may be written to, however they are spelled."""

from pathlib import Path

import pytest
import small_world as world

from capmix.errors import UserError
from capmix.workspace import Workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    made = world.opened(world.write_world(tmp_path), str(tmp_path / "work"))
    made.mix("raw")
    return made


@pytest.mark.parametrize("way", ["{}/pool/out", "file://{}/pool/out", "{}/new/../pool/out"])
def test_nothing_is_written_into_the_pool(work: Workspace, tmp_path: Path, way: str) -> None:
    with pytest.raises(UserError, match="is inside the pool"):
        work.export("raw", way.format(tmp_path))
    with pytest.raises(UserError, match="is inside the pool"):
        world.opened(tmp_path, way.format(tmp_path))
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["00000.tar", "00001.tar"]


@pytest.mark.parametrize("name", ["", "captions/new", "samples", "shards/../subsets", ".markers"])
def test_nothing_is_written_among_the_parts(work: Workspace, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UserError, match=r"holds parts of the work directory .*, for example .*/shards/raw"
    ):
        work.export("raw", f"{tmp_path}/work/{name}")
    work.export("raw", f"{tmp_path}/work/shards/raw")


def test_a_missing_folder_on_the_way_hides_no_files_of_others(
    work: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/captions.csv").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a capmix export"):
        work.export("raw", f"{tmp_path}/mine/new/..", format="csv")
    assert (tmp_path / "mine/captions.csv").read_text() == "mine"


@pytest.mark.parametrize("scratch", ["s3://bucket/x", "{}/pool/x"])
def test_scratch_is_local_and_outside_of_the_pool(tmp_path: Path, scratch: str) -> None:
    from capmix.workspace import open_workspace

    world.write_world(tmp_path)
    with pytest.raises(UserError, match="expected a local directory outside the pool"):
        open_workspace(
            str(tmp_path / "pool"), str(tmp_path / "w"), scratch=scratch.format(tmp_path)
        )
