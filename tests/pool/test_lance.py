"""Lance datasets as pools. Skipped if the package is not installed."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from null_models import null_captions
from samples import image_bytes

from capmix.errors import UserError
from capmix.pool import BadSample, Pool, Sample, open_pool
from capmix.training.launch import pool_source
from capmix.training.pairs import Pair
from capmix.training.scales import TrainSettings
from capmix.workspace import open_workspace

NO_LANCE = """
import sys
sys.modules["lance"] = None
from capmix.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def rows(start: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "jpg": image_bytes(number),
            "caption": f"picture {number}",
            "uid": f"{number:032x}",
            "width": 32,
            "vector": [0.5, 0.25],
        }
        for number in range(start, start + count)
    ]


def write_dataset(path: Path, fragments: int = 2, samples: int = 3) -> Any:
    lance = pytest.importorskip("lance")
    for number in range(fragments):
        table = pa.Table.from_pylist(rows(number * 100, samples))
        lance.write_dataset(table, str(path), mode="append" if number else "create")
    return lance.dataset(str(path))


def samples_of(pool: Pool) -> list[Sample | BadSample]:
    return [sample for shard in pool.shards for sample in pool.read(shard)]


@pytest.mark.parametrize("name", ["pool.lance", "pool"])
def test_a_fragment_is_a_shard_and_a_row_a_sample(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path / name)
    pool = open_pool(str(tmp_path / name))
    assert [shard.name for shard in pool.shards] == ["00000000", "00000001"]
    assert all(shard.bytes > 0 for shard in pool.shards)
    assert pool.has_images
    assert not pool.is_tars
    found = samples_of(pool)
    expected = rows(0, 3) + rows(100, 3)
    for sample, row in zip(found, expected, strict=True):
        assert isinstance(sample, Sample)
        assert (sample.uid, sample.image, sample.text) == (row["uid"], row["jpg"], row["caption"])
        assert sample.metadata["width"] == 32
        assert "vector" not in sample.metadata
    one = list(pool.read(pool.shards[1], {"000000002"}))
    assert [sample.uid for sample in one if isinstance(sample, Sample)] == [f"{102:032x}"]


def test_the_usual_commands_work_on_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "pool.lance")
    work = open_workspace(str(tmp_path / "pool.lance"), str(tmp_path / "work"))
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (6, 6)
    work.mix("raw")
    work.using(workers=2).export("raw", str(tmp_path / "out"), samples_per_shard=4)
    back = samples_of(open_pool(str(tmp_path / "out")))
    assert [one.text for one in back if isinstance(one, Sample)] == [
        row["caption"] for row in rows(0, 3) + rows(100, 3)
    ]


def test_a_fingerprint_is_of_the_bytes_and_not_of_the_owner(tmp_path: Path) -> None:
    write_dataset(tmp_path / "pool.lance")
    pool = open_pool(str(tmp_path / "pool.lance"))
    path = tmp_path / "pool.lance" / pool.files["00000001"][0]
    path.chmod(0o600)
    assert open_pool(str(tmp_path / "pool.lance")).shards == pool.shards
    os.utime(path, (1, 1))  # as if other bytes had been written
    after = open_pool(str(tmp_path / "pool.lance")).shards
    assert [one == other for one, other in zip(after, pool.shards, strict=True)] == [True, False]


def test_data_workers_of_a_training_run_do_not_read_it(tmp_path: Path) -> None:
    """Data workers are forked, and Lance can hang in a forked process."""
    write_dataset(tmp_path / "pool.lance")
    work = open_workspace(str(tmp_path / "pool.lance"), str(tmp_path / "work"))
    work.mix("raw")
    with pytest.raises(UserError, match=r"pool .*pool\.lance is a Lance .* pass --workers 0, or"):
        pool_source(work.pool, work.store, "raw", TrainSettings(workers=2))
    source = pool_source(work.pool, work.store, "raw", TrainSettings(workers=0))
    assert [pair.text for pair in source.read("00000001") if isinstance(pair, Pair)] == [
        f"picture {number}" for number in (100, 101, 102)
    ]


def test_a_deleted_row_changes_only_its_fragment_and_no_other_key(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "pool.lance")
    before = open_pool(str(tmp_path / "pool.lance"))
    dataset.delete(f"uid = '{100:032x}'")
    after = open_pool(str(tmp_path / "pool.lance"))
    assert after.shards[0] == before.shards[0]
    assert after.shards[1].fingerprint != before.shards[1].fingerprint
    assert [one.key for one in after.read(after.shards[1])] == ["000000001", "000000002"]
    assert len(list(before.read(before.shards[1]))) == 3  # reads the version that was listed


def test_renaming_a_column_changes_every_fragment(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "pool.lance")
    before = open_pool(str(tmp_path / "pool.lance")).shards
    dataset.alter_columns({"path": "caption", "name": "text"})
    after = open_pool(str(tmp_path / "pool.lance")).shards
    assert not {one.fingerprint for one in before} & {one.fingerprint for one in after}


def test_bad_rows_are_counted_as_in_parquet_pools(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    about: list[dict[str, Any]] = rows(0, 4)
    about[0]["uid"], about[1]["jpg"], about[3]["uid"] = "no/uid", None, about[2]["uid"]
    lance.write_dataset(pa.Table.from_pylist(about), str(tmp_path / "p.lance"))
    found = samples_of(open_pool(str(tmp_path / "p.lance")))
    assert [one.reason for one in found if isinstance(one, BadSample)] == [
        "bad_uid",
        "no_image",
        "duplicate_uid",
    ]


@pytest.mark.parametrize("damage", ["gone", "short", "noise", "link"])
def test_a_data_file_that_cannot_be_read_is_one_failed_row(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    write_dataset(tmp_path / "pool.lance")
    pool = open_pool(str(tmp_path / "pool.lance"))
    path = tmp_path / "pool.lance" / pool.files["00000000"][0]
    data = path.read_bytes()
    if damage == "short":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        path.write_bytes(data[:-200] + b"\xff" * 200)
    else:
        path.unlink()
    if damage == "link":
        (tmp_path / "secret").write_bytes(data)
        path.symlink_to(tmp_path / "secret")
    first, *others = samples_of(pool)
    assert isinstance(first, BadSample)
    assert first.reason == "unreadable_shard"
    assert "\n" not in first.detail
    assert len(others) == 3


def test_what_leads_out_of_the_dataset_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "pool.lance")
    dataset.shallow_clone(str(tmp_path / "clone.lance"), dataset.version)
    with pytest.raises(UserError, match="fragment 0 of the Lance dataset refers to data outs"):
        open_pool(str(tmp_path / "clone.lance"))
    (tmp_path / "pool.lance/data/other.lance").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="only regular files; 1 entry skipped"):
        open_pool(str(tmp_path / "pool.lance"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "pool.lance/data/other.lance").unlink()
    os.rename(tmp_path / "fifo", tmp_path / "pool.lance/_versions/fifo")
    with pytest.raises(UserError, match=r"1 FIFO\), for example '_versions/fifo'"):
        open_pool(str(tmp_path / "pool.lance"))


def test_a_dataset_that_is_not_a_pool_of_images_is_a_one_line_error(tmp_path: Path) -> None:
    lance = pytest.importorskip("lance")
    lance.write_dataset(pa.table({"text": ["a"]}), str(tmp_path / "t.lance"))
    with pytest.raises(UserError, match="the Lance dataset has no column of image bytes"):
        open_pool(str(tmp_path / "t.lance"))
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(UserError, match="cannot read the Lance dataset"):
        open_pool(str(tmp_path / "empty.lance"))
    with pytest.raises(UserError, match="only from a local disk"):
        open_pool("memory://bucket/pool.lance")
    blob = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    table = pa.table([pa.array([b"x"], pa.large_binary())], pa.schema([blob]))
    lance.write_dataset(table, str(tmp_path / "b.lance"), data_storage_version="2.1")
    with pytest.raises(UserError, match="'image' holds Lance blobs"):
        open_pool(str(tmp_path / "b.lance"))
    shutil.copytree(tmp_path / "t.lance", tmp_path / "broken.lance")
    for manifest in (tmp_path / "broken.lance/_versions").glob("*.manifest"):
        manifest.write_bytes(b"\xff" * 300)
    with pytest.raises(UserError, match="cannot read the Lance dataset") as raised:
        open_pool(str(tmp_path / "broken.lance"))
    assert "\n" not in str(raised.value)


def test_without_the_package_the_error_names_the_install_command(tmp_path: Path) -> None:
    (tmp_path / "p.lance/_versions").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", NO_LANCE, "caption", "p.lance", "--work", "W", "--source", "a"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "capmix: pool p.lance: Lance is not installed: pip install 'capmix[lance]'"
    ]
