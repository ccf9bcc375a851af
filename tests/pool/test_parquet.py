import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import image_bytes, write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.mix.settings import MixSettings
from capmix.pool import BadSample, Sample, open_pool
from capmix.workspace import open_workspace


def write_dataset(folder: Path, rows: int = 6) -> Path:
    """Write images as Hugging Face datasets does: a struct of bytes and path."""
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        numbers = range(part * rows, (part + 1) * rows)
        table = pa.table(
            {
                "image": [{"bytes": image_bytes(n), "path": f"{n}.jpg"} for n in numbers],
                "caption": [f"picture {n}" for n in numbers],
                "label": list(numbers),
            }
        )
        pq.write_table(table, folder / f"data/train-{part:05d}.parquet", row_group_size=4)
    return folder


def test_a_dataset_with_images_is_a_pool(tmp_path: Path) -> None:
    pool = open_pool(str(write_dataset(tmp_path / "d")))
    assert [shard.name for shard in pool.shards] == ["data/train-00000", "data/train-00001"]
    found = [s for shard in pool.shards for s in pool.read(shard)]
    for number, sample in enumerate(found):
        assert isinstance(sample, Sample)
        assert (sample.image, sample.suffix) == (image_bytes(number), "jpg")
        assert (sample.text, sample.metadata["label"]) == (f"picture {number}", number)
    assert len({s.uid for s in found if isinstance(s, Sample)}) == 12
    few = list(pool.read(pool.shards[1], {"000000003", "000000005"}))
    assert few == [found[9], found[11]]


def test_bad_rows_are_reported_and_the_others_are_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([b"x", image_bytes(1), None, image_bytes(2)], pa.binary()),
            "uid": ["../x", "a", "b", "a"],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_bytes(b"PAR1 broken")
    pool = open_pool(str(tmp_path))
    found = [s for shard in pool.shards for s in pool.read(shard)]
    reasons = [s.reason if isinstance(s, BadSample) else "ok" for s in found]
    assert reasons == ["bad_uid", "ok", "no_image", "duplicate_uid", "unreadable_shard"]


def test_all_stages_accept_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    for command in (
        "caption d --work w --source mini --model mini",
        "score d --work w --sources raw,mini --model mini",
        "mix d --work w --recipe raw-top+synthetic",
        "export d --work w --subset raw-top30+mini --out out --workers 1",
    ):
        assert main(command.split()) == 0
    exported = open_pool("out")
    found = [s for shard in exported.shards for s in exported.read(shard)]
    assert len(found) == 12
    digests = {hashlib.sha256(s.image).hexdigest() for s in found if isinstance(s, Sample)}
    assert digests == {hashlib.sha256(image_bytes(n)).hexdigest() for n in range(12)}


def write_metadata(folder: Path, rows: int = 200) -> tuple[list[str], np.ndarray]:
    """Write DataComp's metadata files, without irrelevant columns."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    uids = [draw.bytes(16).hex() for _ in range(2 * rows)]
    scores = (draw.integers(0, 40, 2 * rows) / 100).astype(np.float32)
    scores[::17] = np.nan
    for part in range(2):
        here = slice(part * rows, (part + 1) * rows)
        table = pa.table(
            {
                "uid": uids[here],
                "url": ["http://127.0.0.1/x.jpg"] * rows,
                "text": [f"text {i}" for i in range(rows)],
                "original_width": [640] * rows,
                "original_height": [480] * rows,
                "clip_l14_similarity_score": scores[here],
                "face_bboxes": [[[0.1, 0.1, 0.2, 0.2]]] * rows,
                "sha256": [hashlib.sha256(str(i % 7).encode()).hexdigest() for i in range(rows)],
            }
        )
        pq.write_table(table, folder / f"{part}.parquet")
    return uids, scores


def pairs(uids: list[str]) -> np.ndarray:
    return np.sort(np.array([(int(u[:16], 16), int(u[16:], 16)) for u in uids], "u8,u8"))


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_clip_score_of_metadata_equals_datacomps_baseline(tmp_path: Path, fraction: float) -> None:
    """As apply_filter.py does: score >= the (n + 1)-th largest, with n = int(len * fraction)."""
    uids, scores = write_metadata(tmp_path / "metadata")
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]
    expected = pairs([u for u, s in zip(uids, scores, strict=True) if s >= threshold])
    work = open_workspace(str(tmp_path / "metadata"), str(tmp_path / "w"))
    parameters = {"score": "clip_l14_similarity_score", "fraction": fraction}
    settings = MixSettings(npy=True)
    assert np.isnan(scores).any()
    if np.isnan(threshold):
        with pytest.raises(UserError, match="DataComp's rule keeps none"):
            work.mix("datacomp-clip-score", settings, **parameters, out="top")
    else:
        work.mix("datacomp-clip-score", settings, **parameters, out="top")
        found = np.load(tmp_path / "w/subsets/top.npy", allow_pickle=False)
        assert (found == expected).all()
    level = {"score": "clip_l14_similarity_score", "threshold": 0.29}
    work.mix("datacomp-clip-score-threshold", settings, **level, out="level")
    found = np.load(tmp_path / "w/subsets/level.npy", allow_pickle=False)
    wanted = [u for u, s in zip(uids, scores, strict=True) if s >= np.float32(0.29)]
    assert (found == pairs(wanted)).all()
    everything = work.mix("datacomp-no-filter", settings).summary
    assert everything.kept == 400
    assert work.mix("distinct-images").summary.kept == 7


def test_a_pool_of_only_metadata_cannot_be_captioned(tmp_path: Path) -> None:
    write_metadata(tmp_path / "metadata")
    work = open_workspace(str(tmp_path / "metadata"), str(tmp_path / "w"))
    with pytest.raises(UserError, match="has metadata but no images"):
        work.caption("mini", model="mini")
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"), format="csv")
    with pytest.raises(UserError, match="has metadata but no images"):
        work.export("raw", str(tmp_path / "out2"))


def test_tars_come_before_tables(tmp_path: Path) -> None:
    """DataComp's pools have a parquet file beside each tar."""
    write_pool(tmp_path / "p", shards=1, samples=2)
    pq.write_table(pa.table({"uid": ["x"]}), tmp_path / "p/00000.parquet")
    assert (
        len(list(open_pool(str(tmp_path / "p")).read(open_pool(str(tmp_path / "p")).shards[0])))
        == 2
    )


def test_odd_types_and_broken_files_do_not_affect_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "metadata"
    folder.mkdir()
    (folder / "0.parquet").write_bytes(b"PAR1 broken")
    words = pa.array(["a text", "a text", "b"]).dictionary_encode()
    width = pa.array([2**40, 300, -1])
    score = pa.array([0.1, float("nan"), 0.3])
    table = pa.table({"uid": ["a", "b", "c"], "text": words, "width": width, "s": score})
    pq.write_table(table, folder / "1.parquet")
    more = pa.table({"uid": ["d"], "text": pa.array(["x"], pa.large_string()), "s": [1]})
    pq.write_table(more, folder / "2.parquet")
    work = open_workspace(str(folder), str(tmp_path / "w"), max_failures=0.5)
    clause = "{source: raw, where: s > 0.2}"
    (tmp_path / "r.yaml").write_text(f"{{name: r, about: x, clauses: [{clause}]}}")
    summary = work.mix(str(tmp_path / "r.yaml")).summary
    assert (summary.rows_in, summary.kept) == (4, 2)
    index = work.store.read_table("samples/1.parquet")
    assert index["width"].to_pylist() == [None, 300, None]
    assert index["text"].to_pylist() == ["a text", "a text", "b"]


@pytest.mark.parametrize("name", ["x", "text", "image"])
def test_a_file_with_two_columns_of_one_name_is_a_shard_that_cannot_be_read(
    tmp_path: Path, name: str
) -> None:
    images = pa.array([image_bytes(0)], pa.binary())
    value = images if name == "image" else pa.array(["a"])
    for folder, column in (("metadata", pa.array(["b"])), ("images", images)):
        (tmp_path / folder).mkdir()
        fields = {"metadata": "y", "images": "image"}
        good = pa.table({fields[folder]: column})
        pq.write_table(good, tmp_path / folder / "a.parquet")
        twice = pa.Table.from_arrays([value, value], names=[name, name])
        pq.write_table(twice, tmp_path / folder / "b.parquet")
        work = open_workspace(
            str(tmp_path / folder), str(tmp_path / f"w-{folder}"), max_failures=1.0
        )
        work.index()
        rows = work.store.read_table("samples/b.parquet").to_pylist()
        assert [row["reason"] for row in rows] == ["unreadable_shard"]
        assert f"2 columns are named '{name}'" in rows[0]["detail"]
