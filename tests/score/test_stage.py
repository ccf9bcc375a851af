import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from null_models import NullScorer, null_scores
from samples import sample_members, tar_bytes, write_pool

from capmix.mini.image_tower import LiteTower
from capmix.models.images import decode_image
from capmix.models.tokens import Tokens, encode_texts
from capmix.pool import Sample
from capmix.score.backends.mini import MiniScorer
from capmix.score.settings import ScoreSettings
from capmix.score.stage import ImagePass, fresh_score_stage
from capmix.storage.marker import Counts
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


class Watched(NullScorer):
    """Raises for two texts; its model waits until all texts are tokenized."""

    def __init__(self, texts: int):
        self.tokenized: Counter[str] = Counter()
        self.encoded: Counter[str] = Counter()
        self.texts, self.all_tokenized = texts, threading.Event()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        if "text 3" in texts:
            raise ValueError("no tokens")
        self.tokenized.update(texts)
        if len(self.tokenized) == self.texts:
            self.all_tokenized.set()
        return super().tokenize(texts)

    def encode_tokens(self, inputs: Sequence[str]) -> np.ndarray:
        assert self.all_tokenized.wait(60)
        if "text 4" in inputs:
            raise RuntimeError("no vector")
        self.encoded.update(inputs)
        return super().encode_tokens(inputs)


def scored(
    tmp_path: Path, texts: list[str], scorer: NullScorer
) -> tuple[Counts, list[dict[str, Any]]]:
    """Return the counts and rows of raw texts."""
    members = [m for i, text in enumerate(texts) for m in sample_members(f"k{i:02}", i, text)]
    (tmp_path / "p").mkdir()
    (tmp_path / "p/00000.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    images = ImagePass(work.pool, scorer)
    (counts,) = work.run(lambda: [fresh_score_stage(work.store, scorer, "raw", images)])
    return counts, work.store.read_table("scores/null/raw/00000.parquet").to_pylist()


def test_texts_are_tokenized_once_ahead_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model waits in its first batch for the second one to be tokenized."""
    monkeypatch.setattr("capmix.score.stage.TEXTS_AT_ONCE", 6)
    texts = ["a", "b", "a", "c", "b", "a" * 71, *"defghf"]
    scorer = Watched(len({*texts}))
    counts, rows = scored(tmp_path, texts, scorer)
    assert (counts.ok, [row["truncated"] for row in rows].index(True)) == (12, 5)
    assert scorer.tokenized == scorer.encoded == Counter({*texts})


def test_a_text_that_cannot_be_tokenized_or_encoded_fails_alone(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in (0, 1, 2, 3, 4, 3, 5, 6)]
    counts, rows = scored(tmp_path, texts, Watched(6))
    assert (counts.ok, dict(counts.failed)) == (5, {"model_error": 3})
    details = [row["detail"] for row in rows]
    assert details[3] == details[5] == "ValueError: no tokens"
    assert details[4] == "RuntimeError: no vector"


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
