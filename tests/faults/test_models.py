"""Models that run out of memory, raise, return NaN or hang: no sample fails because of another."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from null_models import (
    Failing,
    NullCaptioner,
    NullScorer,
    failing_captions,
    hung_captions,
    null_captions,
)
from PIL import Image
from samples import BAD, sample_members, tar_bytes, write_pool

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.caption.sampling import sample_tokens
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import Batches, SampleError
from capmix.engine.budget import check_failures, is_unread, unread_rows
from capmix.errors import UserError
from capmix.models.image_pass import embed_stage
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.score.stage import ImagePass, fresh_score_stage
from capmix.storage.marker import Counts
from capmix.storage.store import Store
from capmix.workspace import open_workspace


class Hungry(NullCaptioner):
    """Runs out of memory above `room` images; `seen` records the sizes of its batches."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.seen = room, list[int]()

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        self.seen.append(len(uids))
        if len(uids) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().caption(prepared, uids, source)


def test_a_batch_that_does_not_fit_is_halved_and_so_are_later_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = str(write_pool(tmp_path / "pool", shards=2, samples=40))
    whole = open_workspace(pool, str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    work, model = open_workspace(pool, str(tmp_path / "w")), Hungry(5)
    work.run(lambda: [image_caption_stage(work.pool, model, "null")])
    for shard in ("00000", "00001"):
        part = f"captions/null/{shard}.parquet"
        assert (tmp_path / "w" / part).read_bytes() == (tmp_path / "whole" / part).read_bytes()
    assert model.seen[:3] == [16, 8, 4]
    assert max(model.seen[3:]) == 4
    assert "out of memory at batch size 8; continuing with 4" in caplog.text


def test_one_image_that_never_fits_is_one_failed_row() -> None:
    def model(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise MemoryError
        return list(items)

    found = Batches().run(model, range(8))
    assert [one for one in found if not isinstance(one, SampleError)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(found[3], SampleError)
    assert found[3].reason == "out_of_memory"


def test_a_model_that_raises_on_some_images_fails_only_on_these(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "p", 2, 10)), str(tmp_path / "w"), max_failures=1.0
    )
    bad = [f"{number:032x}" for number in (0, 3, 4, 109)]
    (counts,) = work.run(partial(failing_captions, work.pool, bad))
    assert (counts.ok, dict(counts.failed)) == (16, {"model_error": 4})


def test_a_broken_gpu_ends_the_process_and_fails_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal memory access all CUDA calls fail: the next images must not be blamed."""
    work = open_workspace(str(write_pool(tmp_path / "p", 3, 10)), str(tmp_path / "w"))

    def refuse() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", refuse)
    with pytest.raises(UserError, match="shard 00001: CUDA is unusable in this process"):
        work.run(partial(failing_captions, work.pool, [f"{103:032x}"]))
    assert work.store.parts("captions/null") == ["captions/null/00000"]


class NotFinite(NullScorer):
    """Returns NaN for images whose first value is large, and for texts with a 3."""

    def encode_pixels(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        vectors = np.stack(pixels)
        vectors[vectors[:, 0] > 0.4] = np.nan
        return vectors

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        vectors = super().encode_tokens(inputs)
        vectors[["3" in text for text in inputs]] = np.nan
        return vectors


def test_vectors_that_are_no_numbers_are_failed_rows(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "p", 1, 20)), str(tmp_path / "w"), max_failures=1.0
    )
    work.index()
    model = NotFinite()
    images = ImagePass(work.pool, model)
    (counts,) = work.run(lambda: [fresh_score_stage(work.store, model, "raw", images)])
    assert counts.failed["not_finite"] > 0
    assert counts.failed["nan_score"] > 0
    assert counts.total == 20
    scores = work.store.read_table("scores/null/raw/00000.parquet", ["score"])["score"]
    assert np.isfinite(scores.drop_null().to_numpy()).all()
    (embedded,) = work.run(lambda: [embed_stage(work.pool, model)])
    assert embedded.failed == {"not_finite": counts.failed["not_finite"]}
    assert np.isfinite(work.store.read_array("embeddings/null/image/00000.npy")).all()


class Refusing(NullScorer):
    """Raises on images of one size."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        if image.width == 7:
            raise TypeError("unsupported size")
        return super().prepare(image)


def test_only_the_image_that_cannot_be_prepared_fails(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for side in (6, 7, 8):
        Image.new("RGB", (side, side)).save(tmp_path / f"p/{side}.png")
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    (counts,) = work.run(lambda: [embed_stage(work.pool, Refusing())])
    assert (counts.ok, dict(counts.failed)) == (2, {"model_error": 1})
    rows = work.store.read_table("embeddings/null/image/00000.parquet").to_pylist()
    assert [row["detail"] for row in rows] == [
        None, "TypeError: unsupported size", None,
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.75])
def test_nan_logits_are_an_error_and_not_a_token(temperature: float) -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = torch.nan
    settings = CaptionSettings(top_k=10, temperature=temperature)
    with pytest.raises(ValueError, match="NaN"):
        sample_tokens(logits, torch.zeros(3, dtype=torch.int64), 0, settings)


def test_a_model_that_hangs_on_one_image_fails_only_on_that_one(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "p", 1, 8)), str(tmp_path / "w"), max_failures=1.0
    )
    started = time.monotonic()
    (counts,) = work.run(partial(hung_captions, work.pool, f"{5:032x}", 0.3))
    assert (counts.ok, dict(counts.failed)) == (7, {"model_hung": 1})
    assert time.monotonic() - started < 10
    rows = work.store.read_table("captions/null/00000.parquet").to_pylist()
    (row,) = (row for row in rows if row["status"] == "failed")
    assert row["detail"] == "no answer within 0.3 s (--batch-timeout)"


STUCK = """
import sys
sys.path.insert(0, {tests!r})
from functools import partial
from null_models import stuck_captions
from capmix.workspace import open_workspace
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError

if __name__ == "__main__":
    work = open_workspace({pool!r}, {work!r}, engine=EngineSettings(workers={workers}))
    try:
        work.run(partial(stuck_captions, work.pool, {uid!r}, 0.5))
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("workers", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_model_that_cannot_be_interrupted_ends_its_process(
    tmp_path: Path, workers: int | None
) -> None:
    """C code that never returns, like a GPU kernel that hangs. A run without workers exits with a
    stack trace. A worker is restarted, captions the images of the batch one by one, ends at the one
    that hangs, and the next worker does the others."""
    pool = str(write_pool(tmp_path / "p", 3, 4))
    script = tmp_path / "script.py"
    about = {"tests": str(Path(__file__).parent.parent), "pool": pool, "workers": workers}
    script.write_text(STUCK.format(work=str(tmp_path / "w"), uid=f"{102:032x}", **about))
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "watchdog: no progress for 1 s" in found.stderr
    assert "null_models.py" in found.stderr
    if workers is None:
        assert found.returncode == 70
        (left,) = (path for path in tmp_path.glob("w/.partial/**/*") if path.is_file())
        assert left.read_text().count('null,"hung_batch",') == 4
        return
    assert found.stdout == ""
    table = Store(str(tmp_path / "w")).read_table("captions/null/00001.parquet")
    assert Counter(table["reason"].to_pylist()) == {None: 3 * 2, "model_hung": 1}


def test_only_failed_samples_are_retried(tmp_path: Path) -> None:
    pool = str(write_pool(tmp_path / "p", 3, 10))
    whole = open_workspace(pool, str(tmp_path / "whole"))
    whole.run(partial(null_captions, whole.pool))
    work = open_workspace(pool, str(tmp_path / "w"), max_failures=1.0)
    work.run(partial(failing_captions, work.pool, [f"{i:032x}" for i in (2, 7, 205)]))
    untouched = (tmp_path / "w/captions/null/00001.parquet").stat().st_mtime_ns
    seen: list[str] = []

    class Watching(NullCaptioner):
        def caption(
            self, prepared: Sequence[str], uids: Sequence[str], source: str
        ) -> list[list[Caption]]:
            seen.extend(uids)
            return super().caption(prepared, uids, source)

    work = work.using(retry_failed=True)
    work.run(lambda: [image_caption_stage(work.pool, Watching(), "null")])
    assert seen == [f"{i:032x}" for i in (2, 7, 205)]
    assert (tmp_path / "w/captions/null/00001.parquet").stat().st_mtime_ns == untouched
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            again = tmp_path / "w" / path.relative_to(tmp_path / "whole")
            assert again.read_bytes() == path.read_bytes(), path


def test_a_retry_keeps_failures_of_samples_that_are_broken_in_the_pool(tmp_path: Path) -> None:
    members = [*sample_members("a", 1), *BAD["no_json"], *sample_members("c", 3)]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/0.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    (first,) = work.run(partial(failing_captions, work.pool, [f"{3:032x}"]))
    assert dict(first.failed) == {"no_json": 1, "model_error": 1}
    work = work.using(retry_failed=True)
    (second,) = work.run(partial(null_captions, work.pool))
    assert (second.ok, dict(second.failed)) == (2, {"no_json": 1})
    keys = work.store.read_table("captions/null/0.parquet")["key"].to_pylist()
    assert keys == ["a", "a", "bad", "c", "c"]


class Picky(NullScorer):
    """Raises on the texts of six images."""

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        if any(f"of {number:032x} " in text for text in inputs for number in range(6)):
            raise RuntimeError("unsupported text")
        return super().encode_tokens(inputs)


def test_the_budget_counts_texts_if_an_image_has_several(tmp_path: Path) -> None:
    """12 of 160 texts (80 images) fail: more than a tenth of 80, but less than a tenth of 160."""
    work = open_workspace(
        str(write_pool(tmp_path / "p", 4, 20)), str(tmp_path / "w"), max_failures=0.1
    )
    work.index()
    work.run(partial(null_captions, work.pool))
    scorer = Picky()
    images = ImagePass(work.pool, scorer)
    (counts,) = work.run(lambda: [fresh_score_stage(work.store, scorer, "null", images)])
    assert (counts.failed, counts.total) == ({"model_error": 12}, 160)


def test_a_sample_with_a_duplicate_key_is_retried_with_its_whole_shard(tmp_path: Path) -> None:
    members = [*sample_members("good", 1), *BAD["duplicate_key"], *sample_members("c", 3)]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/0.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    work.run(partial(failing_captions, work.pool, [f"{1:032x}"]))
    work = work.using(retry_failed=True)
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, dict(counts.failed)) == (2, {"duplicate_key": 1})


def test_a_retry_does_not_read_samples_that_are_broken_in_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = write_pool(tmp_path / "p", 2, 3)
    (pool / "00001.tar").write_bytes(tar_bytes([*sample_members("a", 1), *BAD["no_json"]]))
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0, retry_failed=True)
    work.index()
    work.run(partial(null_captions, work.pool))
    again = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0, retry_failed=True)
    monkeypatch.setattr(type(again.pool), "read", None)
    again.index()
    (counts,) = again.run(partial(null_captions, again.pool))
    assert (counts.ok, dict(counts.failed)) == (4, {"no_json": 1})


def test_a_retry_that_cannot_read_the_sample_keeps_the_part_unchanged(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "p", 1, 3)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.run(partial(failing_captions, work.pool, [f"{1:032x}"]))
    part = tmp_path / "w/captions/null/00000.parquet"
    before = part.read_bytes()
    (pool / "00000.tar").unlink()
    work = work.using(retry_failed=True)
    with pytest.raises(UserError, match=r"sample '000000001' could not be reread: 00000\.tar"):
        work.run(partial(null_captions, work.pool))
    assert part.read_bytes() == before


def test_a_retry_that_fails_after_its_samples_keeps_the_part_unchanged(
    tmp_path: Path,
) -> None:
    pool = write_pool(tmp_path / "p", 1, 4)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.run(partial(failing_captions, work.pool, [f"{0:032x}"]))
    before = (tmp_path / "w/captions/null/00000.parquet").read_bytes()
    read = type(work.pool).read

    def broken(
        self: Pool, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        yield from read(self, shard, keys)
        yield BadSample("", "unreadable_shard", "the storage is gone")

    work = work.using(retry_failed=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(work.pool), "read", broken)
        with pytest.raises(UserError, match="the whole shard could not be reread: the"):
            work.run(partial(null_captions, work.pool))
    assert (tmp_path / "w/captions/null/00000.parquet").read_bytes() == before
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (4, 4)


def test_an_unreadable_shard_weighs_as_much_as_the_others(tmp_path: Path) -> None:
    """One row of about 99,000 failed, but it represents 1% of the pool, more than 0.5%."""
    counts = Counts(ok=99_000, failed=Counter(unreadable_shard=1))
    assert unread_rows(counts, 1, 100) == 999
    check_failures("caption", counts, 0.011, [], unread=999)
    with pytest.raises(UserError, match="plus about 999 in shards that could not be read"):
        check_failures("caption", counts, 0.005, ["x"], unread=999)
    assert unread_rows(Counts(ok=10, failed=Counter(model_error=3)), 0, 5) == 0
    assert unread_rows(Counts(failed=Counter(not_a_tar=3)), 3, 3) == 0
    assert is_unread(Counts(failed=Counter(not_a_tar=1)))
    assert not is_unread(Counts(failed=Counter(unreadable_shard=100)))  # a row for each text
    assert not is_unread(Counts(ok=7, failed=Counter(unreadable_shard=1)))


def test_a_run_over_its_budget_ends_early_with_three_examples(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "p", 6, 20)), str(tmp_path / "w"), max_failures=0.02
    )
    work.index()
    bad = [f"{shard * 100 + row:032x}" for shard in range(6) for row in range(8)]
    with pytest.raises(UserError, match=r"stopped early: 16 of 40 rows failed so far") as told:
        work.run(lambda: [image_caption_stage(work.pool, Failing(bad), "null")])
    assert str(told.value).count("Shard 0000") == 3
    assert len(work.store.parts("captions")) == 2
