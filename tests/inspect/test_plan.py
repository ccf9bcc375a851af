"""`capmix plan` times the real stages and extrapolates."""

from pathlib import Path

import pytest
from samples import tar_bytes, write_pool

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.inspect.plan import CostEstimate, PlanSettings, TimedStage, plan

MINI = {"model": "mini", "scorer": "mini"}


def test_the_arithmetic() -> None:
    """128 million images at 100/s and 400/s: 355.6 h and 88.9 h; 444.4 h at 2 per hour cost 889."""
    steps = [TimedStage("caption", 100.0, 20_000, 100), TimedStage("score", 400.0, 500, 20)]
    settings = PlanSettings(workers=8, images=128_000_000, price=2.0)
    found = CostEstimate(128_000_000, True, 512, 12_800, steps, settings)
    assert found.hours == pytest.approx(444.44, abs=0.01)
    lines = found.lines()
    assert lines[0] == "128,000,000 images in 12,800 shards; timed on 512 images"
    assert lines[2].split() == ["caption", "100.0", "355.6", "2.6", "TB", "12.8", "GB"]
    assert lines[3].split() == ["score", "400.0", "88.9", "64.0", "GB", "2.6", "GB"]
    assert lines[4].split()[-5:] == ["444.4", "2.6", "TB", "15.4", "GB"]
    assert lines[5] == "on 8 workers: 55.6 hours"
    assert lines[6] == "price: 444.4 worker-hours x 2 = 888.89"


def test_a_pool_is_timed_and_its_images_are_estimated_by_bytes(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=5, samples=30)
    found = plan(str(pool), PlanSettings(**MINI, samples=20))
    assert [step.name for step in found.steps] == [
        "index", "embed lite0-160", "caption planned", "score raw by mini", "score planned by mini",
    ]  # fmt: skip
    assert found.timed == 20
    assert found.images == pytest.approx(150, rel=0.02)
    assert not found.is_counted
    size = sum(path.stat().st_size for path in pool.glob("*.tar"))
    assert found.steps[0].read == 0  # the index is written from the read of the next stage
    assert found.steps[1].read * found.images == pytest.approx(size, rel=0.01)
    assert found.steps[1].written == pytest.approx(1280 * 2, rel=0.2)  # float16 vectors
    assert all(step.rate > 0 for step in found.steps)


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=12)
    arguments = [
        "--model",
        "mini",
        "--scorer",
        "mini",
        "--images",
        "1280000000",
        "--workers",
        "64",
        "--price",
        "2.5",
    ]
    assert main(["plan", str(pool), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "1,280,000,000 images in 1 shard; timed on 12" in printed
    assert "on 64 workers: " in printed
    assert "worker-hours x 2.5 = " in printed


def test_stages_of_several_texts_an_image_are_timed_by_images(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=20)
    found = plan(str(pool), PlanSettings(**MINI, samples=20, captions_per_image=3))
    raw, planned = found.steps[-2:]
    assert planned.read == pytest.approx(raw.read, rel=0.2)  # bytes per image, not per text


@pytest.mark.parametrize(
    "options", [["--samples", "0"], ["--captions-per-image", "0"], ["--price", "-1"]]
)
def test_numbers_out_of_range_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert main(["plan", str(write_pool(tmp_path / "p", 1, 2)), *options]) == 2
    assert "capmix: plan: " in capsys.readouterr().err


def test_a_pool_that_cannot_be_timed_is_an_error(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=1)
    (pool / "00000.tar").write_bytes(tar_bytes([]))
    with pytest.raises(UserError, match="no sample in shard 00000"):
        plan(str(pool), PlanSettings(**MINI))
