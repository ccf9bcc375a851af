"""Exports as Lance datasets. Skipped if the package is not installed."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from null_models import null_captions
from s3_server import BUCKET, s3_server
from samples import image_bytes, write_pool

from capmix.engine.run import run_job
from capmix.engine.worker import Job
from capmix.errors import UserError
from capmix.pool import Sample, open_pool
from capmix.workspace import Workspace, open_workspace

lance = pytest.importorskip("lance")
MANIFEST = "_versions/18446744073709551614.manifest"


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """Twelve raw texts in three shards; two rows of the subset `twice` have weight 3."""
    write_pool(tmp_path / "pool", shards=3, samples=4)
    made = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    made.run(partial(null_captions, made.pool))
    (tmp_path / "r.yaml").write_text(
        "{name: twice, about: x, clauses: [{source: raw, weight: "
        "\"case when raw_text in ('picture 2', 'picture 101') then 3 else 1 end\"}]}"
    )
    made.mix(str(tmp_path / "r.yaml"))
    made.mix("raw")
    return made


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lance.dataset(str(folder)).to_table().to_pylist()
    return found


def data_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


def test_it_holds_the_rows_and_columns_of_the_parquet_form(work: Workspace, tmp_path: Path) -> None:
    sources = ("raw", "null")
    for form in ("lance", "parquet"):
        work.export("twice", str(tmp_path / form), samples_per_shard=5, format=form)
    dataset = lance.dataset(str(tmp_path / "lance"))
    table = pq.read_table(tmp_path / "parquet/data", use_threads=False)
    assert dataset.schema.equals(table.schema, check_metadata=True)
    assert {f"caption_{source}" for source in sources} < set(dataset.schema.names)
    assert rows(tmp_path / "lance") == table.to_pylist()
    assert len(table) == 12 + 2 * 2
    assert [one.count_rows() for one in dataset.get_fragments()] == [5, 5, 5, 1]
    dataset.validate()
    assert "a Lance dataset" in (tmp_path / "lance/README.md").read_text()


def test_a_pool_of_it_gives_the_same_uids_images_and_texts(work: Workspace, tmp_path: Path) -> None:
    """Export tars to Lance, use the result as a pool, and export that to tars."""
    work.export("raw", str(tmp_path / "mixed.lance"), samples_per_shard=5, format="lance")
    again = open_workspace(str(tmp_path / "mixed.lance"), str(tmp_path / "work2"))
    (counts,) = again.run(partial(null_captions, again.pool))
    assert (counts.ok, counts.total) == (12, 12)
    again.mix("raw")
    again.export("raw", str(tmp_path / "tars"))
    numbers = [shard * 100 + row for shard in range(3) for row in range(4)]
    expected = [(f"{n:032x}", image_bytes(n), f"picture {n}") for n in numbers]
    for place in ("mixed.lance", "tars"):
        pool = open_pool(str(tmp_path / place))
        found = [s for shard in pool.shards for s in pool.read(shard)]
        assert [(s.uid, s.image, s.text) for s in found if isinstance(s, Sample)] == expected
        assert len(found) == 12


def test_processes_change_no_byte_of_the_data(work: Workspace, tmp_path: Path) -> None:
    work.export("twice", str(tmp_path / "one"), samples_per_shard=3, format="lance")
    work = work.using(workers=2)
    work.export("twice", str(tmp_path / "two"), samples_per_shard=3, format="lance")
    assert data_files(tmp_path / "one") == data_files(tmp_path / "two")
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


@pytest.mark.parametrize("killed_at", ["run_job", "commit_dataset"])
def test_a_killed_export_is_no_dataset_until_the_same_command_ends(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    out = tmp_path / "out"
    work.export("twice", str(tmp_path / "whole"), samples_per_shard=3, format="lance")
    with monkeypatch.context() as patched:
        patched.setattr(f"capmix.export.export.{killed_at}", _killed)
        with pytest.raises(KeyboardInterrupt):
            work.export("twice", str(out), samples_per_shard=3, format="lance")
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(str(out))
    work.export("twice", str(out), samples_per_shard=3, format="lance")
    assert rows(out) == rows(tmp_path / "whole")
    assert data_files(out) == data_files(tmp_path / "whole")


def _killed(first: object, *others: Any) -> None:
    """Two shards of the job are written beforehand."""
    if isinstance(first, Job):
        run_job(replace(first, shards=first.shards[:2]), *others)
    raise KeyboardInterrupt


def test_what_is_done_is_kept_and_a_lost_file_written_again(
    work: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), samples_per_shard=5, format="lance")
    before, written = (out / MANIFEST).stat().st_mtime_ns, data_files(out)
    work.export("raw", str(out), samples_per_shard=5, format="lance")
    assert (out / MANIFEST).stat().st_mtime_ns == before
    (out / "data/train-00000001.lance").unlink()
    work.export("raw", str(out), samples_per_shard=5, format="lance")
    assert (data_files(out), len(rows(out))) == (written, 12)


def test_another_subset_or_form_replaces_it_whole(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work.export("twice", str(out), samples_per_shard=5, format="lance")
    work.export("raw", str(out), samples_per_shard=12, format="lance")
    assert list(data_files(out)) == ["train-00000000.lance"]
    assert len(rows(out)) == 12
    work.export("raw", str(out), samples_per_shard=12)
    assert not [path for path in out.rglob("*") if path.suffix in (".lance", ".manifest", ".txn")]


def test_versions_that_others_added_are_not_replaced(work: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), samples_per_shard=5, format="lance")
    lance.dataset(str(out)).delete("k = 0")
    work.export("raw", str(out), samples_per_shard=5, format="lance")  # nothing to do
    (out / "data/train-00000001.lance").rename(tmp_path / "lost")
    message = "a version that capmix did not write .*name another --out"
    with pytest.raises(UserError, match=message):
        work.export("raw", str(out), samples_per_shard=5, format="lance")
    (tmp_path / "lost").rename(out / "data/train-00000001.lance")
    for form in ("lance", "webdataset"):
        with pytest.raises(UserError, match=message):
            work.export("raw", str(out), samples_per_shard=4, format=form)
    for version in (1, 2):
        lance.dataset(str(out), version=version).validate()


def test_it_is_written_to_s3_as_to_a_disk(work: Workspace, tmp_path: Path) -> None:
    with s3_server() as s3:
        work.export("raw", f"s3://{BUCKET}/out", samples_per_shard=5, format="lance")
        s3.fs.get(f"{BUCKET}/out", str(tmp_path / "out"), recursive=True)
        for path in s3.fs.find(BUCKET):
            s3.fs.rm_file(path)
    work.export("raw", str(tmp_path / "here"), samples_per_shard=5, format="lance")
    assert rows(tmp_path / "out") == rows(tmp_path / "here")
    assert data_files(tmp_path / "out") == data_files(tmp_path / "here")
