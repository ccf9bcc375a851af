import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from parts import fresh_folder
from samples import image_bytes, sample_members, tar_bytes, write_pool

from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.export.export import Form, with_processes
from capmix.mix.settings import MixSettings
from capmix.pool import Sample, open_pool
from capmix.pool.local import read_local
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    write_pool(tmp_path / "pool", shards=3, samples=4)
    made = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    made.mix("raw")
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_images_are_untouched_and_texts_are_the_chosen_ones(
    work: Workspace, tmp_path: Path
) -> None:
    work.export("raw", str(tmp_path / "out"), samples_per_shard=5)
    pool = open_pool(str(tmp_path / "out"))
    found = [s for shard in pool.shards for s in pool.read(shard)]
    numbers = [shard * 100 + row for shard in range(3) for row in range(4)]
    assert [s.uid for s in found if isinstance(s, Sample)] == [f"{n:032x}" for n in numbers]
    for sample, number in zip(found, numbers, strict=True):
        assert isinstance(sample, Sample)
        assert sample.key == f"{number:032x}-0"
        assert sample.image == image_bytes(number)
        assert sample.text == f"picture {number}"
        assert sample.metadata["caption_choice"] == "raw"
        assert sample.metadata["caption_raw"] == f"picture {number}"
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert sizes == {"00000000.tar": 5, "00000001.tar": 5, "00000002.tar": 2}


def test_the_same_subset_gives_the_same_bytes(work: Workspace, tmp_path: Path) -> None:
    for name in ("one", "two"):
        work.export("raw", str(tmp_path / name), samples_per_shard=5)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_an_interrupted_export_resumes(work: Workspace, tmp_path: Path) -> None:
    work.export("raw", str(tmp_path / "one"), samples_per_shard=5)
    work.export("raw", str(tmp_path / "two"), samples_per_shard=5)
    (tmp_path / "two/00000001.tar").unlink()
    (tmp_path / "two/_markers/00000001.json").unlink()
    work.export("raw", str(tmp_path / "two"), samples_per_shard=5)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_directory_is_refused_and_an_older_export_replaced(
    work: Workspace, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty and not a capmix export"):
        work.export("raw", str(other))
    work.export("raw", str(tmp_path / "out"), samples_per_shard=2)
    work.export("raw", str(tmp_path / "out"), samples_per_shard=12)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tar")) == ["00000000.tar"]


def test_open_clips_own_reader_reads_the_shards(work: Workspace, tmp_path: Path) -> None:
    from open_clip_train.data import get_dataset_size, get_wds_dataset

    work.export("raw", str(tmp_path / "out"), samples_per_shard=6)
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


def test_ustar_headers_hold_no_time_or_owner(work: Workspace, tmp_path: Path) -> None:
    work.export("raw", str(tmp_path / "out"))
    with tarfile.open(tmp_path / "out/00000000.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in archive} == {(0, 0, 0, "")}


def several_captions(tmp_path: Path) -> Workspace:
    write_pool(tmp_path / "pool", shards=3, samples=4)
    made = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    rows = [
        f"{shard * 100 + row:032x},a <dog> | {shard}{row}" for shard in range(3) for row in range(4)
    ]
    (tmp_path / "c.csv").write_text("\n".join(["uid,text", *rows[:10]]))
    made.import_captions(
        [str(tmp_path / "c.csv")], source="blip2", uid_column="uid", text_column="text"
    )
    (tmp_path / "r.yaml").write_text(
        "{name: twice, about: x, clauses: [{source: blip2, weight: case when width < 50 "
        "and position('2' in blip2_text) > 0 then 3 else 1 end}, {source: raw}]}"
    )
    made.mix(str(tmp_path / "r.yaml"))
    return made


def test_every_caption_and_every_copy_is_written(tmp_path: Path) -> None:
    work = several_captions(tmp_path)
    work.export("twice", str(tmp_path / "out"), samples_per_shard=4)
    pool = open_pool(str(tmp_path / "out"))
    found = [s for shard in pool.shards for s in pool.read(shard) if isinstance(s, Sample)]
    subset = work.subset("twice").table().to_pylist()
    expected = [(f"{row['uid']}-{i}", row) for row in subset for i in range(row["weight"])]
    assert sum(row["weight"] > 1 for row in subset) == 4
    sizes = json.loads((tmp_path / "out/sizes.json").read_text())
    assert set(sizes.values()) == {4}
    assert [s.key for s in found] == [key for key, _ in expected]
    for sample, (_, row) in zip(found, expected, strict=True):
        number = int(row["uid"], 16)
        assert (sample.image, sample.text) == (image_bytes(number), row["text"])
        assert sample.metadata["caption_raw"] == f"picture {number}"
        assert sample.metadata["caption"] == f"picture {number}"  # the original field
        assert sample.metadata["caption_choice"] == row["source"]
        if row["source"] == "blip2":
            assert sample.metadata["caption_blip2"] == row["text"]
    stats = json.loads((tmp_path / "out/00000000_stats.json").read_text())
    assert stats == {"count": 4, "successes": 4}


@pytest.mark.parametrize(
    ("samples", "wanted", "workers"),
    [(3_999, None, None), (4_000, None, 2), (10**6, None, 4), (12, 3, 3), (10**6, 1, 1)],
)
def test_a_small_export_starts_no_processes_unless_they_are_given(
    monkeypatch: pytest.MonkeyPatch, samples: int, wanted: int | None, workers: int | None
) -> None:
    monkeypatch.setattr("capmix.export.export.cores", lambda: 4)
    assert with_processes(EngineSettings(workers=wanted), samples).workers == workers


@pytest.mark.parametrize("form", ["webdataset", "datacomp", "parquet", "jsonl", "csv"])
def test_processes_and_interruptions_change_no_byte(tmp_path: Path, form: Form) -> None:
    work = several_captions(tmp_path)
    size = {} if form == "csv" else {"samples_per_shard": 3}
    work.export("twice", str(tmp_path / "one"), format=form, **size)
    work = work.using(workers=2)
    work.export("twice", str(tmp_path / "two"), format=form, **size)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    card = (tmp_path / "one/README.md").read_text()
    assert "license: other" in card
    assert "import" in card


def test_the_parquet_form_opens_as_a_pool_would_see_it(tmp_path: Path) -> None:
    work = several_captions(tmp_path)
    work.export("twice", str(tmp_path / "out"), samples_per_shard=100, format="parquet")
    table = pq.read_table(tmp_path / "out/data/train-00000000.parquet", use_threads=False)
    subset = work.subset("twice").table().to_pylist()
    assert table["uid"].to_pylist() == [r["uid"] for r in subset for _ in range(r["weight"])]
    first = table.slice(0, 1).to_pylist()[0]
    assert first["image"]["bytes"] == image_bytes(int(first["uid"], 16))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert set(features) == set(table.column_names)


def test_the_files_form_has_a_caption_beside_each_image(tmp_path: Path) -> None:
    work = several_captions(tmp_path)
    work.export("twice", str(tmp_path / "out"), samples_per_shard=5, format="jsonl")
    lines = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    assert len(lines) == 20
    for line in map(json.loads, lines):
        image = tmp_path / "out" / line["file_name"]
        assert image.read_bytes() == image_bytes(int(line["id"].split("-")[0], 16))
        assert image.with_suffix(".txt").read_text() == line["text"]
    llava = json.loads((tmp_path / "out/llava.json").read_text())
    assert [(one["image"], one["conversations"][1]["value"]) for one in llava] == [
        (line["file_name"], line["text"]) for line in map(json.loads, lines)
    ]


def test_the_csv_form_is_the_subset(tmp_path: Path) -> None:
    work = several_captions(tmp_path)
    work.export("twice", str(tmp_path / "out"), format="csv")
    with (tmp_path / "out/captions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    subset = work.subset("twice").table().to_pylist()
    assert [(r["uid"], r["text"]) for r in rows] == [(r["uid"], r["text"]) for r in subset]


def test_a_changed_pool_is_an_error(tmp_path: Path) -> None:
    """Its keys may refer to other samples now."""
    several_captions(tmp_path)
    (tmp_path / "pool/00002.tar").write_bytes(tar_bytes(sample_members("000000000", 1)))
    again = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    with pytest.raises(UserError, match="00002 of the pool has changed since it was indexed"):
        again.export("twice", str(tmp_path / "out"))


@pytest.mark.parametrize("size", [4, 5, 100])
def test_both_captions_of_a_sample_have_keys_of_their_own(tmp_path: Path, size: int) -> None:
    several_captions(tmp_path)
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    (tmp_path / "b.yaml").write_text(
        "{name: both, about: x, keep: all, clauses: [{source: raw, weight: 2}, {source: blip2}]}"
    )
    work.mix(str(tmp_path / "b.yaml"))
    work.export("both", str(tmp_path / "out"), samples_per_shard=size)
    pool = open_pool(str(tmp_path / "out"))
    found = [s for shard in pool.shards for s in pool.read(shard)]
    assert all(isinstance(s, Sample) for s in found)
    assert len({s.key for s in found}) == len(found) == 12 * 2 + 10
    first = [s.text for s in found if s.key.startswith("0" * 32)]  # type: ignore[union-attr]
    assert first == ["picture 0", "picture 0", "a <dog> | 00"]
    work.export("both", str(tmp_path / "files"), samples_per_shard=size, format="jsonl")
    assert len(list((tmp_path / "files").rglob("*.jpg"))) == 34


def test_new_captions_make_a_new_export(tmp_path: Path) -> None:
    work = several_captions(tmp_path)
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"))
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},a new one")
    work.import_captions(
        [str(tmp_path / "c.csv")], source="blip2", uid_column="uid", text_column="text"
    )
    work.export("raw", str(tmp_path / "out"))
    pool = open_pool(str(tmp_path / "out"))
    first = next(iter(pool.read(pool.shards[0])))
    assert isinstance(first, Sample)
    assert first.metadata["caption_blip2"] == "a new one"


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_resharding_a_subset_file_equals_datacomps_resharder(weights: list[int]) -> None:
    """An independent implementation of the rule: a sample listed `count` times in the file is
    written as `count` copies of all its members, under the keys uid-0 to uid-(count - 1)."""
    folder = fresh_folder()
    write_pool(folder / "pool", shards=3, samples=4)
    uids = [f"{shard * 100 + row:032x}" for shard in range(3) for row in range(4)]
    listed = [uid for uid, weight in zip(uids, weights, strict=False) for _ in range(weight)]
    if not listed:
        return
    pairs = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in listed], "u8,u8")
    np.save(folder / "subset.npy", np.sort(pairs))
    work = open_workspace(str(folder / "pool"), str(folder / "work"))
    lists = MixSettings(uids={"list": str(folder / "subset.npy")})
    work.mix("uid-list", lists)
    work.export("raw-of-list", str(folder / "out"), samples_per_shard=5, format="datacomp")
    expected, found = [], []
    for shard in range(3):
        members = tar_members(folder / f"pool/{shard:05d}.tar")
        for key in dict.fromkeys(name.partition(".")[0] for name in members):
            uid = json.loads(members[f"{key}.json"])["uid"]
            for name, data in members.items():
                if name.partition(".")[0] == key:
                    end = name.partition(".")[2]
                    expected += [(f"{uid}-{j}.{end}", data) for j in range(listed.count(uid))]
    for path in sorted((folder / "out").glob("*.tar")):
        found += tar_members(path).items()
    assert sorted(found) == sorted(expected)
    again = np.load(folder / "work/subsets/raw-of-list.npy", allow_pickle=False)
    assert (again == np.sort(pairs)).all()


def tar_members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]


class Breaking(io.BufferedReader):
    """A file on a network disk that fails `left` times after its first bytes."""

    left = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 15_000 and Breaking.left:
            Breaking.left -= 1
            raise OSError(5, "Input/output error")
        return super().read(min(size or 0, 4000))


@pytest.mark.parametrize("fails", [1, 4, 99])
def test_storage_that_fails_in_the_middle_of_a_shard_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """One failure: the read is retried. Four failures: the shard is retried. Permanent failure: no
    shard counts as finished, and the same command resumes."""
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    pool = write_pool(tmp_path / "pool", shards=1, samples=20)
    work = open_workspace(str(pool), str(tmp_path / "w"))
    recipe = tmp_path / "all.yaml"
    recipe.write_text("name: all\nabout: x\nclauses: [{source: raw}]\n")
    work.mix(str(recipe))
    work.export("all", str(tmp_path / "whole"))
    opened = type(work.pool).open_tar
    monkeypatch.setattr(
        type(work.pool), "open_tar", lambda self, shard: Breaking(opened(self, shard).detach())
    )
    Breaking.left = fails
    out = str(tmp_path / "out")
    if fails == 99:
        with pytest.raises(UserError, match="1 of 1 shard could not be processed .*00000.tar"):
            work.export("all", out)
        assert not (tmp_path / "out/_markers").exists()
        Breaking.left = 0
    assert work.export("all", out).ok == 20
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_older_export_whose_removal_was_killed_is_removed_by_the_next_run(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.export("raw", str(tmp_path / "out"))
    removed: list[str] = []
    real = LocalFileSystem.rm_file

    def remove(fs: LocalFileSystem, path: str) -> None:
        removed.append(path)
        if len(removed) > 2:
            raise KeyboardInterrupt
        real(fs, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalFileSystem, "rm_file", remove)
        work.export("raw", str(tmp_path / "out"), samples_per_shard=1)
    work.export("raw", str(tmp_path / "out"), samples_per_shard=1)
    work.export("raw", str(tmp_path / "whole"), samples_per_shard=1)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_image_file_that_cannot_be_read_costs_one_row_until_it_can_be(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(5):
        (pool / f"{number}.jpg").write_bytes(image_bytes(number))
        (pool / f"{number}.txt").write_text(f"picture {number}")
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=0.5)
    work.mix("raw")

    def broken(root: str, name: str, bound: int, follow_links: bool) -> bytes:
        if name == "3.jpg":
            raise PermissionError(13, "Permission denied", name)
        return read_local(root, name, bound, follow_links)

    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("capmix.pool.places.read_local", broken)
        counts = work.export("raw", str(out))
    assert (counts.ok, dict(counts.failed)) == (4, {"unreadable_file": 1})
    counts = work.export("raw", str(out))
    assert (counts.ok, counts.total) == (5, 5)


def test_an_export_does_not_become_a_part_of_its_pool(work: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is inside the pool"):
        work.export("raw", str(tmp_path / "pool/out"))
    with pytest.raises(UserError, match="is inside the pool"):
        open_workspace(str(tmp_path / "pool"), str(tmp_path / "pool"))
    assert sorted(p.name for p in (tmp_path / "pool").iterdir())[-1] == "00002.tar"


def test_a_caption_that_names_llavas_image_token_has_no_image_of_its_own(tmp_path: Path) -> None:
    """LLaVA's loader inserts an image at every `<image>`."""
    write_pool(tmp_path / "pool", shards=1, samples=2)
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"))
    text = "a <image> of <im<image>age>"
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},{text}\n{1:032x},an <Image>\n")
    work.import_captions([str(tmp_path / "c.csv")], source="c")
    work.mix("synthetic", synthetic="c", out="s")
    work.export("s", str(tmp_path / "out"), format="jsonl")
    llava = json.loads((tmp_path / "out/llava.json").read_text())
    turns = [[turn["value"] for turn in one["conversations"]] for one in llava]
    assert turns == [
        ["<image>\nDescribe this image.", "a [image] of <im[image]age>"],
        ["<image>\nDescribe this image.", "an <Image>"],
    ]
    lines = (tmp_path / "out/metadata.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["text"] == text
    card = (tmp_path / "out/README.md").read_text()
    assert "`<image>` was replaced by `[image]` in 1 captions." in card
