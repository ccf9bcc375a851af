import json
import tarfile
from pathlib import Path

import pytest
from samples import image_bytes, write_pool

from capmix import jobs
from capmix.errors import UserError
from capmix.pool import Sample, open_pool


@pytest.fixture
def work(tmp_path: Path) -> jobs.Work:
    write_pool(tmp_path / "pool", shards=3, samples=4)
    made = jobs.open_work(str(tmp_path / "pool"), str(tmp_path / "work"))
    jobs.mix(made, "raw")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_images_are_untouched_and_texts_are_the_chosen_ones(
    work: jobs.Work, tmp_path: Path
) -> None:
    jobs.export(work, "raw", str(tmp_path / "out"), samples_per_shard=5)
    pool = open_pool(str(tmp_path / "out"))
    found = [s for shard in pool.shards for s in pool.read(shard)]
    numbers = [shard * 100 + row for shard in range(3) for row in range(4)]
    assert [s.uid for s in found if isinstance(s, Sample)] == [f"{n:032x}" for n in numbers]
    for sample, number in zip(found, numbers, strict=True):
        assert isinstance(sample, Sample)
        assert sample.key == f"{number:032x}-0"
        assert sample.image == image_bytes(number)
        assert sample.text == f"picture {number}"
        assert sample.metadata["caption_source"] == "raw"
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert sizes == {"00000000.tar": 5, "00000001.tar": 5, "00000002.tar": 2}


def test_the_same_subset_gives_the_same_bytes(work: jobs.Work, tmp_path: Path) -> None:
    for name in ("one", "two"):
        jobs.export(work, "raw", str(tmp_path / name), samples_per_shard=5)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_interrupted_export_goes_on(work: jobs.Work, tmp_path: Path) -> None:
    jobs.export(work, "raw", str(tmp_path / "one"), samples_per_shard=5)
    jobs.export(work, "raw", str(tmp_path / "two"), samples_per_shard=5)
    (tmp_path / "two/00000001.tar").unlink()
    (tmp_path / "two/_markers/00000001.json").unlink()
    jobs.export(work, "raw", str(tmp_path / "two"), samples_per_shard=5)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_directory_is_refused_and_an_older_export_replaced(
    work: jobs.Work, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        jobs.export(work, "raw", str(other))
    jobs.export(work, "raw", str(tmp_path / "out"), samples_per_shard=2)
    jobs.export(work, "raw", str(tmp_path / "out"), samples_per_shard=12)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == ["00000000.tar"]


def test_open_clips_own_reader_reads_the_shards(work: jobs.Work, tmp_path: Path) -> None:
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    jobs.export(work, "raw", str(tmp_path / "out"), samples_per_shard=6)
    shards = str(tmp_path / "out/{00000000..00000001}.tar")
    assert get_dataset_size(shards) == (12, 2)

    class Arguments:
        train_data = val_data = shards
        train_num_samples = val_num_samples = None
        train_data_upsampling_factors = None
        dataset_resampled = False
        seed = workers = 0
        batch_size, world_size, distributed = 4, 1, False

    data = get_wds_dataset(Arguments(), lambda image: image.size[0], False, tokenizer=lambda t: [t])
    texts = [text for _, batch in data.dataloader for text in batch]
    assert sorted(texts) == sorted(f"picture {s * 100 + r}" for s in range(3) for r in range(4))


def test_ustar_headers_hold_no_time_or_owner(work: jobs.Work, tmp_path: Path) -> None:
    jobs.export(work, "raw", str(tmp_path / "out"))
    with tarfile.open(tmp_path / "out/00000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}
