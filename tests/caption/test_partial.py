"""A run that ends inside a shard leaves its captions; the next run computes only the others."""

import io
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from counting_captioner import KILLED_MODEL, CountingCaptioner, KilledCaptioner, KilledError
from samples import image_bytes, sample_members, tar_bytes

from capmix.caption.captioners import caption_stages
from capmix.caption.partial import HUNG_BATCH, failure_entry
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import MODEL_HUNG
from capmix.engine.partial import PartialPart
from capmix.engine.stage import partial_part
from capmix.storage.store import Store
from capmix.workspace import open_workspace

SAMPLES, BATCH = 30, 4
BROKEN = 5  # its bytes are no image


@pytest.fixture(autouse=True)
def reset() -> Iterator[None]:
    CountingCaptioner.asked.clear()
    KilledCaptioner.left = 10**9
    yield
    KilledCaptioner.left = 10**9


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of 30 samples, one of which is broken."""
    folder = tmp_path_factory.mktemp("partial") / "pool"
    folder.mkdir()
    members = []
    for number in range(SAMPLES):
        sample = sample_members(f"{number:09d}", number, f"picture {number}")
        photo = b"no image" if number == BROKEN else image_bytes(number)
        members += [(sample[0][0], photo), *sample[1:]]
    (folder / "00000.tar").write_bytes(tar_bytes(members, mtime=0))
    return folder


def caption(pool: Path, work: Path, **options: Any) -> int:
    """Caption; return the number of captions requested from the model."""
    options = {"captions_per_image": 2, **options}
    open_workspace(pool, work).caption("c", model=KILLED_MODEL, max_failures=1.0, **options)
    found = len(CountingCaptioner.asked)
    CountingCaptioner.asked.clear()
    return found


def killed(pool: Path, work: Path, batches: int, **options: Any) -> None:
    """Caption `batches` batches of 4 images, and end."""
    KilledCaptioner.left = batches
    with pytest.raises(KilledError):
        caption(pool, work, **options)
    KilledCaptioner.left = 10**9
    CountingCaptioner.asked.clear()


def side_files(work: Path) -> list[Path]:
    return sorted(path for path in work.glob(".partial/**/*") if path.is_file())


def files(work: Path) -> dict[str, bytes]:
    return {str(p.relative_to(work)): p.read_bytes() for p in work.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    work = tmp_path_factory.mktemp("whole") / "w"
    caption(pool, work)
    return files(work)


def test_a_kill_costs_one_batch(
    pool: Path, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed(pool, tmp_path / "w", batches=3)
    assert len(side_files(tmp_path / "w")) == 1
    caplog.set_level(logging.INFO)
    assert caption(pool, tmp_path / "w") == 2 * (SAMPLES - 1 - 3 * BATCH)
    assert files(tmp_path / "w") == whole
    assert "caption c: shard 00000 resumes after 13 images" in caplog.text
    assert "caption c: 29 images in" in caplog.text
    assert "1 failed (not_an_image 1), 0 dropped, 12 already done" in caplog.text


def test_a_kill_after_any_batch_changes_no_byte(
    pool: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Also several kills, one after the other, and a kill before anything is done."""
    work, seen = tmp_path / "w", 0
    for batches in (0, 1, 2, 1, 0, 3):
        killed(pool, work, batches)
        seen += batches
        assert ".markers/captions/c/00000.json" not in files(work)
    assert caption(pool, work) == 2 * (SAMPLES - 1 - seen * BATCH)
    assert files(work) == whole


def torn(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def flipped(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def garbage(data: bytes, draw: random.Random) -> bytes:
    return data + draw.randbytes(100) + b"\n" + data


@pytest.mark.parametrize("harm", [torn, flipped, garbage])
def test_damaged_files_cost_their_batches_and_change_no_byte(
    pool: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    harm: Callable[[bytes, random.Random], bytes],
) -> None:
    killed(pool, tmp_path / "killed", batches=4)
    draw = random.Random(harm.__name__)
    for number in range(4):
        work = tmp_path / str(number)
        shutil.copytree(tmp_path / "killed", work)
        (file,) = side_files(work)
        file.write_bytes(harm(file.read_bytes(), draw))
        asked = caption(pool, work)
        assert asked in [2 * (SAMPLES - 1 - n * BATCH) for n in range(5)]
        assert harm is not flipped or asked <= 2 * (SAMPLES - 1 - 2 * BATCH)
        assert files(work) == whole


def test_results_of_other_settings_and_of_another_shard_are_not_used(
    pool: Path, tmp_path: Path
) -> None:
    killed(pool, tmp_path / "w", batches=3)
    assert caption(pool, tmp_path / "w", seed=1) == 2 * (SAMPLES - 1)
    assert side_files(tmp_path / "w") == []
    copy = tmp_path / "pool"
    shutil.copytree(pool, copy)
    killed(copy, tmp_path / "w2", batches=3)
    os.utime(copy / "00000.tar", (1, 1))
    assert caption(copy, tmp_path / "w2") == 2 * (SAMPLES - 1)
    assert side_files(tmp_path / "w2") == []


def test_results_of_another_image_are_not_used(pool: Path, tmp_path: Path) -> None:
    """The files of the shard may be replaced within the resolution of the file system's clock."""
    killed(pool, tmp_path / "w", batches=1)
    entries = {one[0]: one for one in partial_of(pool, tmp_path / "w").entries()}
    assert len(entries) == BATCH
    (file,) = side_files(tmp_path / "w")
    file.unlink()
    forged = [[key, uid, "0" * 16, texts] for key, uid, _, texts, *_ in entries.values()]
    hostile = [[], [1], ["k"] * 9, [None] * 6, ["k", "u", "0", [[1, 2]]], ["k", "u", "0"]]
    part = partial_of(pool, tmp_path / "w")
    part.add([*forged, *hostile])
    part.add([[*forged[0][:2], *next(iter(entries.values()))[2:4]]])  # the same image again
    part.close()
    assert caption(pool, tmp_path / "w") == 2 * (SAMPLES - 2)


def partial_of(pool: Path, work: Path) -> PartialPart:
    """Return the partial part that `caption` uses."""
    opened = open_workspace(pool, work)
    settings = CaptionSettings(model=KILLED_MODEL, captions_per_image=2)
    (stage,) = caption_stages(opened.pool, opened.store, "c", settings)
    return partial_part(stage, opened.pool.shards[0], opened.store)


def test_failures_are_kept_and_retried_only_with_retry_failed(pool: Path, tmp_path: Path) -> None:
    """A failing batch of 4 is tried as 1 of 4, 2 of 2 and 4 of 1."""
    undisturbed, work, retried = (tmp_path / name for name in ("undisturbed", "work", "retried"))
    CountingCaptioner.failing.add(0)
    caption(pool, undisturbed)
    killed(pool, work, batches=2 * 7)
    shutil.copytree(work, retried)
    CountingCaptioner.failing.clear()
    assert caption(pool, retried, retry_failed=True) == 2 * (SAMPLES - 1)
    KilledCaptioner.left = 10**9
    assert caption(pool, work) == 2 * (SAMPLES - 1 - 2 * BATCH)
    first = table(work).slice(0, 2 * BATCH + 1)
    assert (
        first["reason"].to_pylist() == ["model_error"] * 5 + ["not_an_image"] + ["model_error"] * 3
    )
    assert first.equals(table(undisturbed).slice(0, 2 * BATCH + 1))
    killed(pool, work, batches=1, retry_failed=True)
    assert len(side_files(work)) == 1
    assert caption(pool, work, retry_failed=True) == 2 * BATCH
    assert table(work).equals(table(retried))


def table(work: Path) -> pa.Table:
    return Store(str(work)).read_table("captions/c/00000.parquet")


def test_more_captions_per_image_and_more_samples_resume_too(
    pool: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    work = tmp_path / "w"
    assert caption(pool, work, captions_per_image=1, limit=10) == 10
    killed(pool, work, batches=2, captions_per_image=1)
    assert caption(pool, work, captions_per_image=1) == SAMPLES - 1 - 10 - 2 * BATCH
    killed(pool, work, batches=3, limit=20)
    assert caption(pool, work) == SAMPLES - 1 - 3 * BATCH  # only the second captions
    assert table(work).equals(pq.read_table(io.BytesIO(whole["captions/c/00000.parquet"])))


def test_files_that_a_kill_after_the_commit_has_left_are_removed(
    pool: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(PartialPart, "remove", PartialPart.close)
        caption(pool, tmp_path / "w")
    assert len(side_files(tmp_path / "w")) == 1
    assert caption(pool, tmp_path / "w") == 0
    assert files(tmp_path / "w") == whole
    assert not (tmp_path / "w/.partial").exists()


def test_side_files_are_left_alone_while_another_run_is_at_work(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a run of the whole shard beside one of a few samples, whose part is finished."""
    with monkeypatch.context() as patched:
        patched.setattr(PartialPart, "remove", PartialPart.close)
        caption(pool, tmp_path / "w")
    monkeypatch.setattr("capmix.engine.run.is_alone", lambda _: False)
    assert caption(pool, tmp_path / "w") == 0
    assert len(side_files(tmp_path / "w")) == 1


def test_images_of_a_batch_that_hung_are_captioned_one_by_one(
    pool: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that hung alone is a failed row, also if failed samples are retried."""
    killed(pool, tmp_path / "w", batches=2)
    names = [one[:3] for one in partial_of(pool, tmp_path / "w").entries() if one[3]]
    (file,) = side_files(tmp_path / "w")
    file.unlink()
    part = partial_of(pool, tmp_path / "w")
    part.add([failure_entry(*name, MODEL_HUNG, "hangs") for name in names[:1]])
    part.add([failure_entry(*name, HUNG_BATCH, "") for name in names[:BATCH]])
    part.close()
    sizes = []
    method = CountingCaptioner.caption

    def counting(self: Any, prepared: Any, *args: Any) -> Any:
        sizes.append(len(prepared))
        return method(self, prepared, *args)

    monkeypatch.setattr(CountingCaptioner, "caption", counting)
    caption(pool, tmp_path / "w", retry_failed=True)
    assert sizes == [1] * 4 + [4] * 6
    found = table(tmp_path / "w")
    expected = pq.read_table(io.BytesIO(whole["captions/c/00000.parquet"]))
    assert found.slice(1).equals(expected.slice(2))
    assert found["detail"][0].as_py() == "hangs"


def test_a_run_that_finishes_the_shard_of_another_uses_its_captions(
    pool: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run is in its third batch. It detects the part when it commits its own."""
    work, batches, asked = tmp_path / "w", [], []
    method = CountingCaptioner.caption

    def interrupted(self: Any, *args: Any) -> Any:
        batches.append(1)
        if len(batches) == 3:
            CountingCaptioner.asked.clear()
            asked.append(caption(pool, work))
        return method(self, *args)

    monkeypatch.setattr(CountingCaptioner, "caption", interrupted)
    caption(pool, work)
    assert asked == [2 * (SAMPLES - 1 - 2 * BATCH)]
    assert files(work) == whole
