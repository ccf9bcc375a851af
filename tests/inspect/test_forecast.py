"""`--dry-run` reports what would be processed, how long and how many bytes, and changes nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_captioner import MODEL, CountingCaptioner
from samples import image_bytes, write_pool
from small_world import MODEL as SCORER

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.inspect.forecast import Forecast, StageForecast
from capmix.workspace import open_workspace


@pytest.fixture(autouse=True)
def nothing_asked() -> Iterator[None]:
    CountingCaptioner.asked.clear()
    yield
    CountingCaptioner.asked.clear()


def numbers(found: Forecast, name: str) -> tuple[int, int, int]:
    """Return shards to do, images to process, and images kept of a stage."""
    (one,) = (one for one in found.stages if one.name == name)
    return one.shards, one.images, one.kept


def test_a_new_pool_is_estimated_and_left_alone(tmp_path: Path) -> None:
    work = open_workspace(write_pool(tmp_path / "pool", 3, 20), tmp_path / "w")
    before = sorted(tmp_path.glob("w/**/*"))
    found = work.forecast_caption("c", model=MODEL)
    shards, images, kept = numbers(found, "caption c")
    assert (shards, kept) == (3, 0)
    assert images == pytest.approx(60, rel=0.05)
    assert found.stages[0].read == pytest.approx(sum(s.bytes for s in work.pool.shards), rel=0.05)
    assert found.seconds > 0
    assert sorted(tmp_path.glob("w/**/*")) == before


def test_what_is_kept_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capmix.pool.pool.FILES_PER_SHARD", 4)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(9):
        (photos / f"p{number}.jpg").write_bytes(image_bytes(number))
    open_workspace(photos, tmp_path / "w").caption("c", model=MODEL)
    (photos / "a.jpg").write_bytes(image_bytes(100))
    work = open_workspace(photos, tmp_path / "w")
    assert numbers(work.forecast_caption("c", model=MODEL), "caption c") == (3, 1, 9)
    CountingCaptioner.asked.clear()
    work.caption("c", model=MODEL)
    assert len(CountingCaptioner.asked) == 1
    done = work.forecast_caption("c", model=MODEL)
    assert numbers(done, "caption c") == (0, 0, 0)
    assert done.lines()[-1].startswith("dry run: nothing to do")
    more = work.forecast_caption("c", model=MODEL, captions_per_image=2)
    assert numbers(more, "caption c") == (3, 10, 0)
    with pytest.raises(UserError, match="seed 0 -> 1"):
        work.forecast_caption("c", model=MODEL, seed=1)


def test_some_samples_and_scores(tmp_path: Path) -> None:
    work = open_workspace(write_pool(tmp_path / "pool", 3, 20), tmp_path / "w")
    assert numbers(work.forecast_caption("c", model=MODEL, limit=7), "caption c") == (1, 7, 0)
    work.caption("c", model=MODEL)
    found = work.forecast_score(model=SCORER)
    assert [(one.shards, one.images) for one in found.stages] == [(3, 60), (3, 60)]
    assert [(one.images) for one in work.forecast_score(model=SCORER, limit=7).stages] == [7, 7]
    assert not work.store.parts("scores")


def test_the_commands_print_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, work = write_pool(tmp_path / "pool", 1, 12), str(tmp_path / "w")
    shown = ["--work", work, "--dry-run", "--limit", "5"]
    assert main(["caption", str(pool), "--source", "c", "--model", MODEL, *shown]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"caption c +1 of 1 +5 +0 +\S+ kB +\S+ \w+ +[\d.]+ s", printed)
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        f"pool: {pool}\nwork: {work}\n"
        f"caption: {{c: {{model: '{MODEL}', where: 'raw_text like ''%1'''}}}}\n"
        "score: {model: mini}\nmix: {recipes: [raw]}\n"
    )
    assert main(["run", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"caption c +1 of 1 +2 ", printed)  # uids 1 and 11 match
    assert re.search(r"score c by mini +1 of 1 +12 ", printed)
    assert printed.endswith("then: mix (not timed)\n")
    assert not (tmp_path / "w/captions").exists()
    assert main(["run", str(file), "--limit", "4"]) == 0
    assert len(open_workspace(work=work).subset("raw")) == 12  # the shard that contains them


def test_several_workers_share_the_time() -> None:
    one = StageForecast("caption c", 2, 100, 0, 2e6, 1e3, 400.0)
    assert Forecast([one], 3, 8, 4).seconds == 100
