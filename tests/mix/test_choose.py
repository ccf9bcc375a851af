"""`--limit`, `--where` and `--uids` select samples; nothing is computed twice for a sample."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting_captioner import MODEL, CountingCaptioner
from null_models import NullScorer
from samples import sample_members, tar_bytes
from small_world import MODEL as SCORER

from capmix.errors import UserError
from capmix.mix.uids import PAIR
from capmix.storage.store import Store
from capmix.workspace import Workspace, open_workspace

SHARDS, SAMPLES = 3, 4


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    CountingCaptioner.asked.clear()


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three tars of four samples each; every second sample has no text."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for shard in range(SHARDS):
        members = []
        for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
            text = f"picture {number}" if number % 2 else None
            members += sample_members(f"{number:04d}", number, text)
        (folder / f"{shard}.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.fixture
def work(pool: Path, tmp_path: Path) -> Workspace:
    return open_workspace(pool, tmp_path / "w")


def asked() -> int:
    count = len(CountingCaptioner.asked)
    CountingCaptioner.asked.clear()
    return count


def caption(work: Workspace, **options: Any) -> int:
    work.caption("c", model=MODEL, **options)
    return asked()


def statuses(work: Workspace, folder: str) -> Counter[str]:
    store = work.store
    found: Counter[str] = Counter()
    for part in store.parts(folder):
        table = store.read_table(f"{part}.parquet")
        pairs = zip(table["status"].to_pylist(), table["reason"].to_pylist(), strict=True)
        found.update(reason or status for status, reason in pairs)
    return found


def files(work: Workspace, folder: str) -> dict[str, bytes]:
    store = work.store
    return {part: store.read_bytes(f"{part}.parquet") for part in store.parts(folder)}


def test_a_limit_looks_at_no_more_shards_than_it_must(work: Workspace) -> None:
    assert caption(work, limit=2) == 2
    assert work.store.parts("samples") == ["samples/0"]
    assert statuses(work, "captions/c") == {"ok": 2, "not_selected": 2}
    assert caption(work, limit=2) == 0
    assert caption(work, limit=5) == 3
    assert statuses(work, "captions/c") == {"ok": 5, "not_selected": 3}


def test_what_follows_a_trial_is_what_would_have_been_without_it(
    work: Workspace, pool: Path, tmp_path: Path
) -> None:
    caption(work, limit=5)
    assert caption(work) == SHARDS * SAMPLES - 5
    fresh = open_workspace(pool, tmp_path / "fresh")
    caption(fresh)
    assert files(work, "captions/c") == files(fresh, "captions/c")
    assert caption(work, limit=3) == 0  # complete parts are kept
    assert files(work, "captions/c") == files(fresh, "captions/c")


def test_a_condition_selects(work: Workspace) -> None:
    assert caption(work, where="raw_text is null") == 6
    assert statuses(work, "captions/c") == {"ok": 6, "not_selected": 6}
    assert caption(work, where="raw_text is null") == 0
    assert caption(work, where="raw_text like '%1'", limit=1) == 1
    assert statuses(work, "captions/c") == {"ok": 7, "not_selected": 5}
    assert caption(work) == 5


def test_a_list_selects_by_uid_or_by_key(
    work: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "names.txt").write_text(f"{3:032x}\n0006\n\nnobody\n")
    with caplog.at_level(logging.WARNING, "capmix"):
        assert caption(work, uids=str(tmp_path / "names.txt")) == 2
    assert "1 of 3 are not in the pool, for example 'nobody'" in caplog.text
    np.save(tmp_path / "uids.npy", np.array([(0, 3), (0, 9)], PAIR))
    assert caption(work, uids=str(tmp_path / "uids.npy")) == 1


def test_a_selection_of_nothing_and_a_bad_one_are_one_line(work: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--where raw_text = 'x': selects no sample"):
        caption(work, where="raw_text = 'x'")
    with pytest.raises(UserError, match="--where"):
        caption(work, where="nothing > 3")
    with pytest.raises(UserError, match="--uids .*none.txt: .*No such file"):
        caption(work, uids=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="--limit: expected a number of at least 1"):
        caption(work, limit=0)


def test_scores_of_a_part_of_the_samples(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    caption(work)
    seen: list[int] = []
    encode = NullScorer.encode_tokens

    def counted(self: Any, texts: Any) -> Any:
        seen.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(NullScorer, "encode_tokens", counted)
    work.score(model=SCORER, sources="c", limit=3)
    assert sum(seen) == 3
    scores = f"scores/{work.store.folders('scores')[0]}/c"
    assert statuses(work, scores) == {"ok": 3, "not_selected": 1}
    work.score(model=SCORER, sources="c", where="raw_text is null")
    assert statuses(work, scores) == {
        "ok": 7,
        "not_selected": 5,
    }  # the first shard was already scored
    work.score(model=SCORER, sources="c")
    assert statuses(work, scores) == {"ok": 12}
    seen.clear()
    work.score(model=SCORER, sources="c", limit=3)  # complete parts include all requested samples
    assert statuses(work, scores) == {"ok": 12}
    assert not seen


def test_texts_that_were_not_selected_are_texts_that_recipes_do_not_have(
    work: Workspace, tmp_path: Path
) -> None:
    caption(work, where="raw_text is null")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nabout: raw, else a caption\nclauses:\n"
        "  - {source: raw, where: raw_text is not null}\n"
        "  - {source: c, where: raw_text is null}\n"
    )
    subset = work.mix(str(recipe))
    assert len(subset) == 12
    assert work.status().stages  # a selection does not make a part stale
    assert not any(stage.stale for stage in work.status().stages)


def test_captions_from_embeddings_too(work: Workspace) -> None:
    from capmix.caption.settings import CaptionSettings

    work.caption("mini", CaptionSettings(model="mini"), limit=5)
    assert statuses(work, "captions/mini") == {"ok": 5, "not_selected": 3}
    work.caption("mini", CaptionSettings(model="mini"))
    assert statuses(work, "captions/mini") == {"ok": 12}


def test_a_broken_shard_does_not_end_a_trial(pool: Path, tmp_path: Path) -> None:
    whole = (pool / "0.tar").read_bytes()
    (pool / "0.tar").write_bytes(whole[: len(whole) // 2])
    work = open_workspace(pool, tmp_path / "w")
    assert caption(work, limit=3, max_failures=1) == 3
    assert (
        caption(work, max_failures=1)
        == Store(str(tmp_path / "w"))
        .read_table("captions/c/0.parquet")["status"]
        .to_pylist()
        .count("ok")
        + 8
        - 3
    )


def test_whole_parts_of_embeddings_stay_whole(work: Workspace) -> None:
    work.caption("mini", model="mini")
    work.caption("mini", model="mini", limit=2)
    assert statuses(work, "captions/mini") == {"ok": 12}


def test_a_retry_of_some_scores_leaves_the_others(work: Workspace) -> None:
    from small_world import HashScorer

    own = HashScorer.encode_tokens

    def failing(self: Any, texts: Any) -> Any:
        if any("drawn" in text and text.endswith("0") and seen.pop() for text in texts):
            raise ValueError("no")
        return own(self, texts)

    caption(work)
    seen = [False] * 100 + [True]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HashScorer, "encode_tokens", failing)
        work.score(model=SCORER, sources="c", max_failures=1)
    scores = f"scores/{work.store.folders('scores')[0]}/c"
    before = statuses(work, scores)
    work.score(model=SCORER, sources="c", limit=2, retry_failed=True)
    assert statuses(work, scores)["not_selected"] == 0
    assert statuses(work, scores)["ok"] >= before["ok"]


def test_first_shards_without_samples_or_with_many_bad_ones_do_not_end_a_trial(
    tmp_path: Path,
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "0.tar").write_bytes(tar_bytes([]))
    bad = [("a.json", b"{}"), ("b.json", b"{}"), *sample_members("good", 900)]
    (pool / "1.tar").write_bytes(tar_bytes(bad))
    members = [one for n in range(200) for one in sample_members(f"{n:04d}", n % 7, uid=f"u{n}")]
    (pool / "2.tar").write_bytes(tar_bytes(members))
    work = open_workspace(pool, tmp_path / "w")
    assert caption(work, limit=3) == 3
