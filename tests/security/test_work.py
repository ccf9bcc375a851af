"""Files of a work directory: their mode, and untrusted contents."""

import os
from pathlib import Path

import numpy as np
import pytest
from hostile import Hostile
from samples import write_pool

from capmix.errors import UserError
from capmix.storage.store import Store
from capmix.workspace import open_workspace


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_have_the_mode_that_the_umask_says(
    mask: int, file: int, folder: int, tmp_path: Path
) -> None:
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},x\n")
    pool = str(write_pool(tmp_path / "pool", 1, 3))
    before = os.umask(mask)
    try:
        work = open_workspace(pool, str(tmp_path / "w"))
        work.import_captions(
            [str(tmp_path / "c.csv")], source="web", uid_column="uid", text_column="text"
        )
        work.mix("raw")
        for form in ("webdataset", "parquet", "jsonl", "csv"):
            work.export("raw", str(tmp_path / f"out-{form}"), format=form)  # type: ignore[arg-type]
        work.report()
    finally:
        os.umask(before)
    made = [path for top in tmp_path.iterdir() if top.name[0] in "wo" for path in top.rglob("*")]
    assert {path.stat().st_mode & 0o7777 for path in made if path.is_file()} == {file}
    assert {path.stat().st_mode & 0o7777 for path in made if path.is_dir()} == {folder}
    assert not [path for path in made if path.name.endswith(".tmp")]


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    array = np.array([Hostile(proof)], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle"):
        Store(str(tmp_path)).read_array("x.npy")
    assert not proof.exists()
