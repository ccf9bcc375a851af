"""Names of samples in an export."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from photos import PHOTOS, mixed, write_photos
from samples import write_pool

from capmix.export.settings import Form
from capmix.pool import Sample, open_pool
from capmix.workspace import Workspace


@pytest.fixture
def photos(tmp_path: Path) -> Workspace:
    return mixed(write_photos(tmp_path / "photos"), tmp_path / "work")


def names_of(folder: Path, form: Form) -> list[str]:
    if form == "csv":
        with (folder / "captions.csv").open(newline="") as stream:
            return [row["filename"] for row in csv.DictReader(stream)]
    if form == "parquet":
        table = pq.read_table(folder / "data/train-00000000.parquet", use_threads=False)
        names: list[str] = table["filename"].to_pylist()
        return names
    if form == "lance":
        lance = pytest.importorskip("lance")

        return list(lance.dataset(str(folder)).to_table()["filename"].to_pylist())
    if form == "jsonl":
        lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line)["filename"] for line in lines]
    pool = open_pool(str(folder))
    found = [sample for shard in pool.shards for sample in pool.read(shard)]
    return [one.metadata["filename"] for one in found if isinstance(one, Sample)]


@pytest.mark.parametrize("form", ["webdataset", "parquet", "lance", "jsonl", "csv"])
def test_names_and_folders_survive_in_every_form(
    photos: Workspace, tmp_path: Path, form: Form
) -> None:
    if form == "lance":
        pytest.importorskip("lance")
    photos.export("raw", str(tmp_path / "out"), format=form)
    assert names_of(tmp_path / "out", form) == list(PHOTOS)


def test_of_a_tar_the_member_is_named(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", shards=1, samples=2)
    work = mixed(tmp_path / "pool", tmp_path / "work")
    work.export("raw", str(tmp_path / "out"), format="parquet")
    assert names_of(tmp_path / "out", "parquet") == ["000000000.jpg", "000000001.jpg"]


def test_names_survive_an_export_of_an_export(photos: Workspace, tmp_path: Path) -> None:
    photos.export("raw", str(tmp_path / "tars"))
    again = mixed(tmp_path / "tars", tmp_path / "work2")
    again.export("raw", str(tmp_path / "out"), format="parquet")
    assert names_of(tmp_path / "out", "parquet") == list(PHOTOS)
