"""A failing image fails only itself; killed and uninterrupted runs write the same captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes, write_pool
from tiny_models import blip

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.caption.settings import CaptionSettings
from capmix.pool import Sample
from capmix.workspace import open_workspace


class Fragile:
    """A captioner whose whole batch fails because of one image."""

    settings: dict[str, Any] = {"model": "fragile"}  # noqa: RUF012
    batch_size, workers = 4, 2

    def prepare(self, sample: Sample) -> str:
        return sample.uid

    def caption(
        self, prepared: Sequence[str], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        if f"{2:032x}" in prepared:
            raise RuntimeError("CUDA error")
        return [[Caption(f"saw {uid}")] for uid in uids]


def test_a_failing_batch_is_split_until_the_bad_one_stands_alone(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "p", 1, 7)), str(tmp_path / "w"), max_failures=1.0
    )
    (counts,) = work.run(lambda: [image_caption_stage(work.pool, Fragile(), "s")])
    assert (counts.ok, dict(counts.failed)) == (6, {"model_error": 1})
    rows = work.store.read_table("captions/s/00000.parquet").to_pylist()
    assert [row["text"] for row in rows] == [None if i == 2 else f"saw {i:032x}" for i in range(7)]
    assert rows[2]["detail"] == "RuntimeError: CUDA error"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CaptionSettings:
    folder = blip(tmp_path_factory.mktemp("blip"))
    return CaptionSettings(model=str(folder), captions_per_image=2, max_tokens=6)


def test_the_whole_command_and_a_resume_with_another_batch_size(
    model: CaptionSettings, tmp_path: Path
) -> None:
    pool = write_pool(tmp_path / "p", 3, 5)
    whole = open_workspace(str(pool), str(tmp_path / "whole"))
    whole.caption("blip", model)
    resumed = open_workspace(str(pool), str(tmp_path / "resumed"))
    resumed.caption("blip", model)
    for name in (".markers/captions/blip/00001.json", "captions/blip/00001.parquet"):
        (tmp_path / "resumed" / name).unlink()
    resumed.caption("blip", model.model_copy(update={"batch_size": 2}))
    for name in ("00000", "00001", "00002"):
        first = whole.store.read_table(f"captions/blip/{name}.parquet")
        assert first.equals(resumed.store.read_table(f"captions/blip/{name}.parquet"))
        assert first.column("k").to_pylist() == [0, 1] * 5


def test_every_kind_of_bad_image_is_a_counted_row(model: CaptionSettings, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a_good.jpg").write_bytes(image_bytes(1))
    (folder / "b_cut.jpg").write_bytes(image_bytes(1, (400, 300))[:800])
    (folder / "c_html.jpg").write_bytes(b"<html>")
    (folder / "d_empty.jpg").write_bytes(b"")
    (folder / "e_pixel.png").write_bytes(image_bytes(1, (1, 1), "PNG"))
    work = open_workspace(str(folder), str(tmp_path / "w"), max_failures=1.0)
    counts = work.caption("blip", model)
    assert (counts.ok, dict(counts.failed)) == (2, {"broken_image": 1, "not_an_image": 2})


def test_an_image_that_cannot_be_prepared_fails_alone(tmp_path: Path) -> None:
    class Refusing(Fragile):
        def prepare(self, sample: Sample) -> str:
            if sample.key.endswith("2"):
                raise TypeError("a shape that it does not like")
            return super().prepare(sample)

    work = open_workspace(str(write_pool(tmp_path / "p", 1, 4)), str(tmp_path / "w"))
    captioner = Refusing()
    (counts,) = work.run(lambda: [image_caption_stage(work.pool, captioner, "s")])
    assert counts.failed["model_error"] >= 1
    details = work.store.read_table("captions/s/00000.parquet")["detail"].to_pylist()
    assert "TypeError: a shape that it does not like" in details
