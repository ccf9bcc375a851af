"""Captions of unchanged images are kept when other files change."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from counting_captioner import MODEL, OLD_MODEL, CountingCaptioner
from samples import image_bytes, sample_members, tar_bytes

from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.storage.store import Store
from capmix.workspace import open_workspace

PHOTOS = 9


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    CountingCaptioner.asked.clear()
    yield
    CountingCaptioner.empty.clear()
    CountingCaptioner.failing.clear()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of nine photos with texts, in shards of four."""
    monkeypatch.setattr("capmix.pool.pool.FILES_PER_SHARD", 4)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        (folder / f"p{number}.jpg").write_bytes(image_bytes(number))
        (folder / f"p{number}.txt").write_text(f"photo {number}")
    return folder


def asked() -> int:
    """Return the number of captions requested since the last call."""
    count = len(CountingCaptioner.asked)
    CountingCaptioner.asked.clear()
    return count


def caption(pool: Path, work: Path, model: str = MODEL, **options: Any) -> int:
    """Caption; return the number of captions requested from the model."""
    open_workspace(pool, work).caption("c", model=model, **options)
    return asked()


def table(work: Path) -> pa.Table:
    store = Store(str(work))
    tables = [store.read_table(f"{part}.parquet") for part in store.parts("captions/c")]
    return pa.concat_tables(tables)


def same_as_undisturbed(pool: Path, work: Path, tmp_path: Path, **options: Any) -> bool:
    """Return whether the captions equal those in a new work directory."""
    fresh = tmp_path / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    caption(pool, fresh, **options)
    names = sorted(Store(str(fresh)).parts("captions/c"))
    ours, theirs = Store(str(work)), Store(str(fresh))
    return all(
        ours.read_bytes(f"{name}.parquet") == theirs.read_bytes(f"{name}.parquet") for name in names
    )


def test_one_photo_more_is_one_caption_more(photos: Path, tmp_path: Path) -> None:
    assert caption(photos, tmp_path / "w") == PHOTOS
    (photos / "a.jpg").write_bytes(image_bytes(100))  # moves every other photo to another row
    assert caption(photos, tmp_path / "w") == 1
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def test_a_photo_with_another_name_keeps_its_caption(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "p0.jpg").rename(photos / "z.jpg")  # from the first shard to the last one
    (photos / "p0.txt").rename(photos / "z.txt")
    assert caption(photos, tmp_path / "w") == 0
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def test_a_photo_that_was_touched_and_a_text_that_was_edited_cost_nothing(
    photos: Path, tmp_path: Path
) -> None:
    caption(photos, tmp_path / "w")
    os.utime(photos / "p3.jpg", (1, 1))
    (photos / "p5.txt").write_text("quite another text")
    assert caption(photos, tmp_path / "w") == 0
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def test_a_photo_that_changed_is_captioned_again(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "p3.jpg").write_bytes(image_bytes(100))
    assert caption(photos, tmp_path / "w") == 1
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def test_a_photo_that_is_gone_leaves_the_others(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "p0.jpg").unlink()
    assert caption(photos, tmp_path / "w") == 0
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def test_copies_of_a_photo_have_one_caption(photos: Path, tmp_path: Path) -> None:
    (photos / "p0 copy.jpg").write_bytes((photos / "p0.jpg").read_bytes())
    caption(photos, tmp_path / "w")
    found = table(tmp_path / "w")
    assert len(set(found["uid"].to_pylist())) == PHOTOS + 1
    assert found["text"][0] == found["text"][1]


def test_other_settings_keep_nothing(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "a.jpg").write_bytes(image_bytes(100))
    with pytest.raises(UserError, match="seed 0 -> 1"):
        caption(photos, tmp_path / "w", seed=1)
    assert caption(photos, tmp_path / "w", seed=1, force=True) == PHOTOS + 1


def test_a_captioner_that_may_read_more_than_the_image_captions_again(
    photos: Path, tmp_path: Path
) -> None:
    assert caption(photos, tmp_path / "w", OLD_MODEL) == PHOTOS
    (photos / "p5.txt").write_text("quite another text")
    assert caption(photos, tmp_path / "w", OLD_MODEL) == 4  # the shard with this text
    (photos / "a.jpg").write_bytes(image_bytes(100))
    assert caption(photos, tmp_path / "w", OLD_MODEL) == PHOTOS + 1


def test_a_field_is_read_again_where_it_has_changed(photos: Path, tmp_path: Path) -> None:
    for number in range(PHOTOS):
        (photos / f"p{number}.json").write_text(f'{{"tags": "first {number}"}}')
    open_workspace(photos, tmp_path / "w").caption("c", model="field:tags")
    (photos / "p5.json").write_text('{"tags": "second"}')
    open_workspace(photos, tmp_path / "w").caption("c", model="field:tags")
    texts = table(tmp_path / "w")["text"].to_pylist()
    assert texts == [f"first {n}" if n != 5 else "second" for n in range(PHOTOS)]


def test_a_run_that_was_killed_halfway_resumes_with_what_was_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(photos, tmp_path / "w")
    (photos / "a.jpg").write_bytes(image_bytes(100))
    work = open_workspace(photos, tmp_path / "w")
    from capmix.caption import image_stage

    made: list[str] = []
    written = image_stage.table_of

    def killed(*given: Any) -> Any:
        made.append("part")
        if len(made) == 2:  # of the three parts
            raise KeyboardInterrupt
        return written(*given)

    monkeypatch.setattr(image_stage, "table_of", killed)
    with pytest.raises(KeyboardInterrupt):
        work.caption("c", model=MODEL)
    monkeypatch.setattr(image_stage, "table_of", written)
    assert asked() == 1
    assert caption(photos, tmp_path / "w") == 0
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)
    assert not list((tmp_path / "w").glob(".carried/*"))


def test_a_tar_that_was_written_again_keeps_the_captions_of_its_images(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    members = [one for n in range(6) for one in sample_members(f"{n:04d}", n)]
    (pool / "0.tar").write_bytes(tar_bytes(members))
    assert caption(pool, tmp_path / "w") == 6
    broken = [("x.jpg", b"no image"), ("x.json", b'{"uid": "x"}'), ("y.json", b"{}")]
    more = [*sample_members("new", 50), *broken, *members]
    (pool / "0.tar").write_bytes(tar_bytes(more))
    assert caption(pool, tmp_path / "w", max_failures=1) == 2  # prepare does not read x
    assert same_as_undisturbed(pool, tmp_path / "w", tmp_path, max_failures=1)
    swapped = [*sample_members("new", 50)[:1], *sample_members("new", 51)[1:], *members]
    (pool / "0.tar").write_bytes(tar_bytes(swapped))
    assert caption(pool, tmp_path / "w", max_failures=1) == 1  # a new uid changes the draws
    assert same_as_undisturbed(pool, tmp_path / "w", tmp_path)


def test_a_truncated_tar_keeps_what_it_still_has(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    data = tar_bytes([one for n in range(6) for one in sample_members(f"{n:04d}", n)])
    (pool / "0.tar").write_bytes(data)
    caption(pool, tmp_path / "w")
    (pool / "0.tar").write_bytes(data[: len(data) // 2])
    assert caption(pool, tmp_path / "w", max_failures=1) == 0
    assert same_as_undisturbed(pool, tmp_path / "w", tmp_path, max_failures=1)


@pytest.mark.parametrize("model", [MODEL, OLD_MODEL])
def test_a_fifth_caption_is_one_caption_more(photos: Path, tmp_path: Path, model: str) -> None:
    CountingCaptioner.empty.add(1)
    assert caption(photos, tmp_path / "w", model, captions_per_image=4) == 4 * PHOTOS
    found = caption(photos, tmp_path / "w", model, captions_per_image=5)
    assert found == (PHOTOS if model == MODEL else 5 * PHOTOS)
    options = {"model": model, "captions_per_image": 5}
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path, **options)
    with pytest.raises(UserError, match="captions_per_image 5 -> 4"):
        caption(photos, tmp_path / "w", model, captions_per_image=4)


def test_a_fifth_caption_that_fails_leaves_four(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w", captions_per_image=4)
    CountingCaptioner.failing.add(4)
    caption(photos, tmp_path / "w", captions_per_image=5, max_failures=1)
    found = table(tmp_path / "w")
    assert found["status"].to_pylist() == ["ok", "ok", "ok", "ok", "failed"] * PHOTOS
    CountingCaptioner.failing.clear()
    assert caption(photos, tmp_path / "w", captions_per_image=5, retry_failed=True) == 5 * PHOTOS
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path, captions_per_image=5)


def test_copies_of_a_photo_with_fields_of_their_own_keep_them(photos: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        (photos / f"p{number}.jpg").write_bytes(image_bytes(0))
        (photos / f"p{number}.json").write_text(f'{{"tags": "tag {number}"}}')
    work = open_workspace(photos, tmp_path / "w")
    for limit in (1, 2, 3):
        work.caption("c", model="field:tags", limit=limit)
    assert table(tmp_path / "w")["text"].to_pylist()[:2] == ["tag 0", "tag 1"]


def test_captions_stay_where_the_image_cannot_be_prepared_for_one_more(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(photos, tmp_path / "w", captions_per_image=2)

    def late(self: CountingCaptioner, sample: Any) -> str:
        raise SampleError("timeout", "too late")

    with monkeypatch.context() as patch:
        patch.setattr(CountingCaptioner, "prepare", late)
        caption(photos, tmp_path / "w", captions_per_image=3, max_failures=1)
    assert table(tmp_path / "w")["status"].to_pylist() == ["ok", "ok", "failed"] * PHOTOS
    caption(photos, tmp_path / "w", captions_per_image=3, retry_failed=True)
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path, captions_per_image=3)


def test_a_trial_keeps_what_the_rest_will_need(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "a.jpg").write_bytes(image_bytes(100))
    assert caption(photos, tmp_path / "w", limit=2) == 1
    assert caption(photos, tmp_path / "w") == 0
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)
    assert not list((tmp_path / "w").glob(".carried/*"))


def test_what_is_carried_does_not_grow_and_may_be_damaged(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w")
    (photos / "a.jpg").write_bytes(image_bytes(100))
    store = Store(str(tmp_path / "w"))
    for _ in range(3):
        with pytest.raises(UserError, match="seed"):
            caption(photos, tmp_path / "w", seed=1)
        rows = store.read_table(".carried/c.parquet")
        assert len(rows) == PHOTOS
    configs = pa.array(["{"] * 5 + ["[]"] * 4)
    damaged = rows.set_column(rows.schema.get_field_index("config"), "config", configs)
    store.write_table(".carried/c.parquet", damaged)
    work = open_workspace(photos, tmp_path / "w")
    assert work.forecast_caption("c", model=MODEL).stages[0].images == 1
    asked()  # images timed by the plan
    assert caption(photos, tmp_path / "w") == 1


def test_protection_is_of_the_whole_pool(photos: Path, tmp_path: Path) -> None:
    caption(photos, tmp_path / "w", uids=str(listed(tmp_path, "p8.jpg")))
    (tmp_path / "w/captions/c/00000.parquet").unlink()
    with pytest.raises(UserError, match="seed 0 -> 1"):
        caption(photos, tmp_path / "w", seed=1, limit=1)


def test_a_retry_of_some_samples_leaves_the_part_what_it_is(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    members = [one for n in range(6) for one in sample_members(f"{n:04d}", n)]
    (pool / "0.tar").write_bytes(tar_bytes(members))
    caption(pool, tmp_path / "w")
    store = Store(str(tmp_path / "w"))
    before = store.fingerprint("captions/c/0")
    assert caption(pool, tmp_path / "w", limit=2, retry_failed=True) == 0
    assert store.fingerprint("captions/c/0") == before
    CountingCaptioner.failing.add(0)
    caption(pool, tmp_path / "x", limit=1, max_failures=1)
    CountingCaptioner.failing.clear()
    assert caption(pool, tmp_path / "x", limit=2, retry_failed=True) == 2
    assert caption(pool, tmp_path / "x") == 4
    assert same_as_undisturbed(pool, tmp_path / "x", tmp_path)


def test_two_runs_of_other_samples_keep_what_both_made(photos: Path, tmp_path: Path) -> None:
    """The second run starts and finishes while the first one is captioning."""
    work = open_workspace(photos, tmp_path / "w")
    others = iter([{"limit": 1}, {"uids": str(listed(tmp_path, "p2.jpg"))}])
    own = CountingCaptioner.caption

    def meanwhile(self: CountingCaptioner, *given: Any, **options: Any) -> Any:
        found = own(self, *given, **options)
        if (other := next(others, None)) is not None:
            open_workspace(photos, tmp_path / "w").caption("c", model=MODEL, **other)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CountingCaptioner, "caption", meanwhile)
        work.caption("c", model=MODEL, uids=str(listed(tmp_path, "p1.jpg")))
    texts = [text is not None for text in table(tmp_path / "w")["text"].to_pylist()[:4]]
    assert texts == [True, True, True, False]
    asked()
    assert caption(photos, tmp_path / "w") == PHOTOS - 3
    assert same_as_undisturbed(photos, tmp_path / "w", tmp_path)


def listed(folder: Path, *names: str) -> Path:
    path = folder / f"{names[0]}.list"
    path.write_text("\n".join(names))
    return path
