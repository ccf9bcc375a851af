"""Find text in a pool, score images without it, and mix by the score, with the real detector."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont
from samples import image_bytes, tar_bytes, write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models.images import decode_image
from capmix.models.text_detector import TextDetector
from capmix.models.text_mask import text_mask, without_text
from capmix.pool import EMBEDDED, Pool, Sample, open_pool
from capmix.workspace import Workspace, open_workspace

pytest.importorskip("rapidocr")
ROWS = 4


def picture(seed: int, text: str) -> bytes:
    """Return a JPEG of a smooth random image with a text."""
    image = Image.open(io.BytesIO(image_bytes(seed, (320, 240)))).convert("RGB")
    ImageDraw.Draw(image).text(
        (20, 100), text, font=ImageFont.load_default(30), fill="white", stroke_width=2,
        stroke_fill="black",
    )  # fmt: skip
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def write_texts(folder: Path, shards: int = 2) -> Path:
    """Write a pool in which each second image has text; the last one is not an image."""
    folder.mkdir()
    for shard in range(shards):
        members = []
        for row in range(ROWS):
            seed = shard * 10 + row
            image = picture(seed, "BIG SALE NOW") if row % 2 else image_bytes(seed, (320, 240))
            if (shard, row) == (shards - 1, ROWS - 1):
                image = b"no image"
            members += [(f"{seed:04d}.jpg", image), (f"{seed:04d}.txt", b"a big sale now")]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return folder


def samples_of(pool: Pool) -> dict[str, Sample]:
    read = (sample for shard in pool.shards for sample in pool.read(shard))
    return {one.uid: one for one in read if isinstance(one, Sample)}


def rows_of(work: Workspace, folder: str) -> dict[str, dict[str, object]]:
    tables = [work.store.read_table(f"{folder}/{shard.name}.parquet") for shard in work.pool.shards]
    return {row["uid"]: row for row in pa.concat_tables(tables).to_pylist()}


def open_texts(tmp_path: Path) -> Workspace:
    return open_workspace(str(write_texts(tmp_path / "pool")), str(tmp_path / "w"))


def test_the_columns_are_those_of_the_detector_and_broken_images_are_failed_rows(
    tmp_path: Path,
) -> None:
    work = open_texts(tmp_path)
    counts = work.annotate(method="text_area", max_failures=0.5)
    assert (counts.ok, dict(counts.failed)) == (7, {"not_an_image": 1})
    rows, detector = rows_of(work, "columns/text"), TextDetector(640)
    for uid, sample in samples_of(work.pool).items():
        row = rows[uid]
        if sample.image == b"no image":
            assert (row["status"], row["area"], row["boxes"]) == ("failed", None, None)
            continue
        image = decode_image(sample.image)
        boxes = detector.find([detector.prepare(image)])[0]
        assert row["corners"] == boxes.ravel().tolist()
        assert row["boxes"] == len(boxes) == int(sample.key) % 2
        assert row["area"] == pytest.approx(text_mask(boxes, image.size).mean())
    areas = [row["area"] for row in rows.values() if row["boxes"]]
    assert all(isinstance(area, float) and 0.05 < area < 0.3 for area in areas)


def test_parts_that_are_done_are_kept_and_missing_ones_are_the_same_again(tmp_path: Path) -> None:
    work = open_texts(tmp_path)
    work.annotate(method="text_area", max_failures=0.5)
    files = sorted((tmp_path / "w/columns/text").glob("*.parquet"))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    files[0].unlink()
    again = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
    assert again.annotate(method="text_area", max_failures=0.5).total == 8
    after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert after[0][0] == before[0][0]
    assert after[1] == before[1]
    with pytest.raises(UserError, match="was created with different settings"):
        again.annotate(method="text_area", side=320, max_failures=0.5)
    assert again.annotate(method="text_area", name="small", side=320, max_failures=0.5).ok == 7


def test_a_masked_score_is_the_score_of_the_image_that_was_masked_by_hand(tmp_path: Path) -> None:
    work = open_texts(tmp_path)
    work.annotate(method="text_area", max_failures=0.5)
    for mask in (None, "text"):
        work.score(model="mini", mask=mask, max_failures=0.5)
    rows, plain = rows_of(work, "columns/text"), rows_of(work, "scores/mini/raw")
    masked = rows_of(work, "scores/mini-masked/raw")
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    with_text = []
    for uid, sample in samples_of(work.pool).items():
        if not rows[uid]["boxes"]:
            assert masked[uid]["score"] == plain[uid]["score"]  # also if both are None
            assert masked[uid]["reason"] == plain[uid]["reason"]
            continue
        with_text.append(uid)
        boxes = np.array(rows[uid]["corners"]).reshape(-1, 4, 2)
        without_text(decode_image(sample.image), boxes).save(by_hand / f"{sample.key}.png")
        (by_hand / f"{sample.key}.txt").write_text(sample.text or "")
    assert len(with_text) == 3
    other = open_workspace(str(by_hand), str(tmp_path / "other"))
    other.score(model="mini")
    expected = {row["key"]: row["score"] for row in rows_of(other, "scores/mini/raw").values()}
    for uid in with_text:
        assert masked[uid]["score"] == expected[f"{masked[uid]['key']}.png"]
        assert masked[uid]["score"] != plain[uid]["score"]


def test_a_repeated_key_does_not_take_the_boxes_of_the_first_sample(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1, "BIG SALE NOW")), ("a.txt", b"a sale")]
    other = [("b.jpg", image_bytes(2)), ("b.txt", b"b"), ("a.jpg", image_bytes(3)), ("a.txt", b"c")]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes([*members, *other]))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
    work.annotate(method="text_area")
    for mask in (None, "text"):
        work.score(model="mini", mask=mask)
    plain, masked = (
        work.store.read_table(f"scores/{name}/raw/0.parquet") for name in ("mini", "mini-masked")
    )
    assert masked["status"] == plain["status"]
    assert masked["status"].to_pylist() == ["ok", "ok", "failed"]
    assert masked["score"][0] != plain["score"][0]


def test_scores_without_saved_embeddings_follow_the_boxes_too(tmp_path: Path) -> None:
    work = open_texts(tmp_path)
    work.annotate(method="text_area", max_failures=0.5)
    for mask in (None, "text"):
        work.score(model="unsaved_mini:Unsaved", mask=mask, max_failures=0.5)
        work.score(model="mini", mask=mask, max_failures=0.5)
    for suffix in ("", "-masked"):
        unsaved = rows_of(work, f"scores/unsaved{suffix}/raw")
        saved = rows_of(work, f"scores/mini{suffix}/raw")
        assert {k: v["score"] for k, v in unsaved.items()} == {
            k: v["score"] for k, v in saved.items()
        }
    boxes = tmp_path / "w/columns/text/00000.parquet"
    made = tmp_path / "w/scores/unsaved-masked/raw/00000.parquet"
    before = made.stat().st_mtime_ns
    work.score(model="unsaved_mini:Unsaved", mask="text", max_failures=0.5)
    assert made.stat().st_mtime_ns == before
    boxes.unlink()
    work.annotate(method="text_area", side=160, force=True, max_failures=0.5)
    work.score(model="unsaved_mini:Unsaved", mask="text", max_failures=0.5)
    assert made.stat().st_mtime_ns > before


def test_scoring_without_boxes_names_the_command_that_finds_them(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "w"))
    with pytest.raises(UserError, match="run `capmix annotate --method text_area --name text`"):
        work.score(model="mini", mask="text")
    work.annotate(method="text_area")
    write_pool(tmp_path / "pool", samples=5)
    with pytest.raises(UserError, match="shard 00000 has changed since"):
        open_workspace(str(tmp_path / "pool"), str(tmp_path / "w")).score(model="mini", mask="text")


def test_t_mars_keeps_the_half_with_the_highest_masked_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = open_pool(EMBEDDED)
    samples = [one for one in pool.read(pool.shards[4]) if isinstance(one, Sample)][:40]
    (tmp_path / "pool").mkdir()
    for one in samples:
        (tmp_path / f"pool/{one.uid}.{one.suffix}").write_bytes(one.image)
        (tmp_path / f"pool/{one.uid}.txt").write_text(one.text or "")
    monkeypatch.chdir(tmp_path)
    for command in (
        "annotate pool --work w --method text_area",
        "score pool --work w --model mini",
        "score pool --work w --model mini --mask text",
        "mix pool --work w --recipe t-mars --set masked=mini_masked",
        "mix pool --work w --recipe raw-top",  # by the scores of whole images
        "mix pool --work w --recipe raw --where text_area<0.1 --out little-text",
    ):
        assert main(command.split()) == 0, command
    work = open_workspace("pool", "w")
    masked, area = rows_of(work, "scores/mini-masked/raw"), rows_of(work, "columns/text")
    scores = sorted((row["score"] for row in masked.values()), reverse=True)
    expected = {uid for uid, row in masked.items() if row["score"] >= scores[20]}
    kept = work.subset("raw-top50-t-mars").table()["uid"].to_pylist()
    assert set(kept) == expected
    little = work.subset("little-text").table()["uid"].to_pylist()
    assert set(little) == {uid for uid, row in area.items() if row["area"] < 0.1}
    assert 20 < len(little) < 40
