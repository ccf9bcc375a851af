"""Exports load in Hugging Face datasets as documented on the page of export."""

import re
from pathlib import Path
from typing import Any

import pytest
from samples import sample_members, tar_bytes

from capmix.export.settings import Form
from capmix.workspace import open_workspace

datasets = pytest.importorskip("datasets")
PAGE = Path(__file__).parents[2] / "docs/commands/export.md"
BOX = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("form", ["webdataset", "datacomp"])
def test_tars_whose_first_lists_are_empty_open_with_the_features_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    (tmp_path / "pool").mkdir()
    boxes = [[], [], [], [], [], [], [BOX], [BOX, BOX]]
    members = [
        member
        for row, found in enumerate(boxes)
        for member in sample_members(f"{row:09d}", row, f"picture {row}", face_bboxes=found)
    ]
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    work.mix("raw")
    work.export("raw", str(tmp_path / "mixed"), format=form)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (block,) = [one for one in blocks if "load_dataset" in one]
    names: dict[str, Any] = {}
    exec(block, names)
    mixed = names["mixed"]
    assert [one["face_bboxes"] for one in mixed["json"]] == boxes
    assert mixed[6]["txt"] == "picture 6"
    assert mixed[6]["json"]["uid"] == f"{6:032x}"
    assert mixed[6]["jpg"].size == (40, 30)
