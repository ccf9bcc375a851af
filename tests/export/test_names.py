"""What samples are called in an export."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import image_bytes, write_pool

from capmix.export.settings import Form
from capmix.pool import Sample, open_pool
from capmix.workspace import Workspace, open_workspace

PHOTOS = {"IMG_1.JPG": "first", "trip/day 1/Zürich.jpg": "second", "trip/why?.png": "third"}


def write_photos(folder: Path) -> Path:
    """A folder of images with texts beside them."""
    for number, (name, text) in enumerate(PHOTOS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, kind="PNG" if name.endswith("png") else "JPEG"))
        path.with_suffix(".txt").write_text(text)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Workspace:
    made = open_workspace(str(write_photos(tmp_path / "photos")), str(tmp_path / "work"))
    made.mix("raw")
    return made


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
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"), format="parquet")
    assert names_of(tmp_path / "out", "parquet") == ["000000000.jpg", "000000001.jpg"]


def test_names_survive_an_export_of_an_export(photos: Workspace, tmp_path: Path) -> None:
    photos.export("raw", str(tmp_path / "tars"))
    again = open_workspace(str(tmp_path / "tars"), str(tmp_path / "work2"))
    again.mix("raw")
    again.export("raw", str(tmp_path / "out"), format="parquet")
    assert names_of(tmp_path / "out", "parquet") == list(PHOTOS)
