from functools import partial
from pathlib import Path

import numpy as np
import pytest
from null_models import null_scores
from samples import sample_members, tar_bytes, write_pool

from capmix.mini.image_tower import LiteTower
from capmix.models.images import decode_image
from capmix.models.tokens import encode_texts
from capmix.pool import Sample
from capmix.score.backends.mini import MiniScorer
from capmix.score.settings import ScoreSettings
from capmix.workspace import Workspace, open_workspace


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    members = sample_members("a", 1, "a red apple") + sample_members("b", 2, None)
    members += [("c.jpg", b"<html>"), ("c.json", b'{"uid": "c"}')] + sample_members("d", 3, "  ")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes(members))
    return open_workspace(str(tmp_path / "pool"), str(tmp_path / "work"), max_failures=1.0)


def test_scores_equal_a_plain_recomputation(work: Workspace, tower: LiteTower) -> None:
    work.caption("mini", model="mini")
    work.score(model="mini")
    scorer = MiniScorer(encoder=tower)
    for source, texts in (("raw", "samples"), ("mini", "captions/mini")):
        rows = work.store.read_table(f"scores/mini/{source}/00000.parquet").to_pylist()
        written = work.store.read_table(f"{texts}/00000.parquet").to_pylist()
        text_of = {row["uid"]: row["text"] for row in written}
        pool = {s.uid: s for s in work.pool.read(work.pool.shards[0]) if isinstance(s, Sample)}
        for row in rows:
            if row["status"] != "ok":
                continue
            image = scorer.project_images(tower.encode([decode_image(pool[row["uid"]].image)]))
            text = encode_texts(scorer, [text_of[row["uid"]]])
            expected = float(image[0] @ text[0]) / np.linalg.norm(image) / np.linalg.norm(text)
            assert row["score"] == pytest.approx(expected, abs=1e-5)


def test_every_row_is_accounted_for(work: Workspace) -> None:
    counts = work.score(ScoreSettings(model="mini", sources=["raw"]))["raw"]
    assert counts.ok == 1
    assert counts.dropped == {"no_text": 2}
    assert counts.failed == {"not_an_image": 1}
    marker = work.store.read_marker("scores/mini/raw/00000")
    assert marker is not None
    assert marker.rows_in == counts.total == 4


def test_images_are_decoded_once_for_captions_and_scores(work: Workspace) -> None:
    work.caption("mini", model="mini")
    before = Path(work.store.path("embeddings/lite0-160/image/00000.npy")).stat().st_mtime_ns
    work.score(model="mini")
    after = Path(work.store.path("embeddings/lite0-160/image/00000.npy")).stat().st_mtime_ns
    assert before == after


def test_images_that_cannot_be_read_any_more_are_failed_rows(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", shards=2, samples=4)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    data = (pool / "00001.tar").read_bytes()
    (pool / "00001.tar").unlink()
    (counts,) = work.run(partial(null_scores, work.pool, work.store, ["raw"]))
    assert (counts.ok, dict(counts.failed)) == (4, {"unreadable_shard": 4})
    (pool / "00001.tar").write_bytes(data)
    work = work.using(retry_failed=True)
    (counts,) = work.run(partial(null_scores, work.pool, work.store, ["raw"]))
    assert (counts.ok, counts.total) == (8, 8)


def test_a_text_whose_image_is_not_in_the_pass_is_a_failed_row(tmp_path: Path) -> None:
    """The shard was rewritten with other samples between the listing and the image pass."""
    pool = write_pool(tmp_path / "pool", shards=1, samples=4)
    work = open_workspace(str(pool), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    (pool / "00000.tar").write_bytes(tar_bytes(sample_members("other", 77)))
    (counts,) = work.run(partial(null_scores, work.pool, work.store, ["raw"]))
    assert (counts.ok, dict(counts.failed)) == (0, {"no_embedding": 4})
