"""Stages that read all images index the pool in the same read."""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import small_world
from counting_captioner import MODEL, CountingCaptioner
from hypothesis import given, settings
from hypothesis import strategies as st
from null_models import NullScorer
from parts import fresh_folder
from samples import BAD, GOOD, Member, image_bytes, sample_members, tar_bytes, write_pool
from storm import Fault, Killed, Storm, on_disk

from capmix.caption.captioner import Caption
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.models.shared_read import SharedRead
from capmix.pool import BadSample, Pool, Sample, Shard, open_pool
from capmix.storage.marker import UNFINGERPRINTED
from capmix.workspace import Workspace, open_workspace

Reads = Counter[str]
Command = Callable[[Workspace], Any]


class Embedding(NullScorer):
    """A captioner of saved embeddings."""

    device = "cpu"

    def __init__(self, chosen: CaptionSettings, source: str = ""):
        self._captioner = CountingCaptioner(chosen)

    def caption(self, embeddings: Any, uids: Sequence[str], source: str) -> list[list[Caption]]:
        return self._captioner.caption(uids, uids, source)


def caption(work: Workspace, model: str = MODEL, **options: Any) -> None:
    work.caption("c", model=model, **options)


def embed_and_caption(work: Workspace) -> None:
    caption(work, f"{__name__}:Embedding")


def score(work: Workspace, **options: Any) -> None:
    work.score(model=small_world.MODEL, device="cpu", **options)


def embed_and_score(work: Workspace) -> None:
    score(work, save_embeddings=True)


COMMANDS: dict[str, Command] = {
    one.__name__: one for one in (caption, embed_and_caption, score, embed_and_score)
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The number of times that each shard was read, by name."""
    found: Reads = Counter()
    read = Pool.read

    def counted(
        self: Pool, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        found[shard.name] += 1
        return read(self, shard, keys)

    monkeypatch.setattr(Pool, "read", counted)
    return found


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("shared") / "pool", shards=2, samples=4)


def files(work: Path) -> dict[str, Any]:
    """Return the contents of the files of a work directory, markers without provenance."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in work.rglob("*") if path.is_file()):
        name = str(path.relative_to(work))
        if name.startswith(("running/", ".arrays/", "pool.json")) or name.endswith(".tmp"):
            continue
        found[name] = path.read_bytes()
        if name.endswith(".json"):
            value = json.loads(found[name])
            found[name] = {key: one for key, one in value.items() if key not in UNFINGERPRINTED}
    return found


def is_as_indexed_first(pool: Path, work: Path, run: Command) -> bool:
    """Return whether the work directory equals one that was indexed before the command."""
    other = fresh_folder() / "w"
    opened = open_workspace(pool, other, max_failures=1.0)
    opened.index()
    run(opened)
    return files(other) == files(work)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_new_pool_is_read_once(name: str, pool: Path, tmp_path: Path, reads: Reads) -> None:
    work = open_workspace(pool, tmp_path / "w")
    COMMANDS[name](work)
    assert reads == {"00000": 1, "00001": 1}
    assert work.index() is None
    assert is_as_indexed_first(pool, tmp_path / "w", COMMANDS[name])
    reads.clear()
    COMMANDS[name](open_workspace(pool, tmp_path / "w"))
    assert not reads


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pool_that_is_indexed_in_part_is_read_once(
    name: str, pool: Path, tmp_path: Path, reads: Reads
) -> None:
    work = open_workspace(pool, tmp_path / "w")
    work.of_shards(work.pool.shards[1:]).index()
    reads.clear()
    COMMANDS[name](work)
    assert reads == {"00000": 1, "00001": 1}
    assert is_as_indexed_first(pool, tmp_path / "w", COMMANDS[name])


def test_selected_samples_are_indexed_first(pool: Path, tmp_path: Path, reads: Reads) -> None:
    caption(open_workspace(pool, tmp_path / "w"), limit=3)
    assert reads == {"00000": 2}
    reads.clear()
    caption(open_workspace(pool, tmp_path / "w"))
    assert reads == {"00000": 1, "00001": 1}
    assert is_as_indexed_first(pool, tmp_path / "w", caption)


def test_kept_captions_are_found_by_the_index_of_a_changed_shard(
    pool: Path, tmp_path: Path, reads: Reads
) -> None:
    mine, work = shutil.copytree(pool, tmp_path / "pool"), tmp_path / "w"
    caption(open_workspace(mine, work))
    write_pool(mine, shards=3)  # a new shard, and new dates of the others
    reads.clear()
    CountingCaptioner.asked.clear()
    caption(open_workspace(mine, work))
    assert reads == {"00000": 1, "00001": 1, "00002": 1}
    assert len(CountingCaptioner.asked) == 4
    assert is_as_indexed_first(mine, work, caption)


def test_photos_that_moved_to_other_shards_keep_their_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.pool.pool.FILES_PER_SHARD", 3)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(1, 7):
        (photos / f"{number}.jpg").write_bytes(image_bytes(number))
    caption(open_workspace(photos, tmp_path / "w"))
    (photos / "0.jpg").write_bytes(image_bytes(0))
    CountingCaptioner.asked.clear()
    caption(open_workspace(photos, tmp_path / "w"))
    assert len(CountingCaptioner.asked) == 1
    assert is_as_indexed_first(photos, tmp_path / "w", caption)


def test_a_retry_of_some_samples_collects_nothing(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads
) -> None:
    work = tmp_path / "w"
    monkeypatch.setattr(CountingCaptioner, "failing", {0})
    caption(open_workspace(pool, work, max_failures=1.0))
    monkeypatch.setattr(CountingCaptioner, "failing", set())
    shutil.rmtree(work / ".markers/samples")
    reads.clear()
    caption(open_workspace(pool, work, retry_failed=True))
    assert reads == {"00000": 2, "00001": 2}
    assert is_as_indexed_first(pool, work, caption)


def test_scoring_captions_only_indexes_without_embedding_again(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "w"
    caption(open_workspace(pool, work))
    score(open_workspace(pool, work), sources=["c"])
    shutil.rmtree(work / ".markers/samples")
    monkeypatch.setattr(NullScorer, "encode_pixels", None)  # fails if called
    score(open_workspace(pool, work), sources=["c"])
    assert open_workspace(pool, work).index().ok == 8


def test_a_run_over_the_budget_stops_before_the_pool_is_indexed(
    tmp_path: Path, reads: Reads
) -> None:
    bad = [(f"b{number}.jpg", b"<html>") for number in range(6)]
    fields = [
        (f"b{number}.json", json.dumps({"uid": f"b{number}"}).encode()) for number in range(6)
    ]
    members = [*sum(zip(bad, fields, strict=True), ()), *sample_members("good", 1)]
    (tmp_path / "pool").mkdir()
    for number in range(40):
        (tmp_path / f"pool/{number:05d}.tar").write_bytes(tar_bytes(members))
    work = open_workspace(tmp_path / "pool", tmp_path / "w")
    with pytest.raises(UserError, match="12 of 14 rows failed so far, of about 280 rows in total"):
        caption(work)
    assert len(reads) < 5


def test_only_whole_reads_are_collected_and_few_are_held(tmp_path: Path) -> None:
    pool = open_pool(str(write_pool(tmp_path / "pool", shards=4)))
    first, *others = pool.shards
    shared = SharedRead(pool, lambda shard: shard == others[2])
    next(shared.read(first))
    list(shared.read(first, {"000000000"}))
    list(shared.read(others[2]))
    assert [shared.take(shard) for shard in pool.shards] == [None] * 4
    for shard in pool.shards:
        assert len(list(shared.read(shard))) == 4
    held = [shared.take(shard) for shard in pool.shards]
    assert [one and len(one.rows) for one in held] == [None, 4, 4, None]
    assert [shared.take(shard) for shard in pool.shards] == [None] * 4


def test_a_pool_without_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/00000.tar").write_bytes(tar_bytes([]))
    with pytest.raises(UserError, match="no samples in 1 shard"):
        caption(open_workspace(tmp_path / "pool", tmp_path / "w"))


def broken(data: bytes, way: str) -> bytes:
    """Return a tar, whole or damaged."""
    return {"whole": data, "cut": data[: len(data) // 2], "no tar": b"x" * 2000}[way]


Shards = list[tuple[list[str], str]]
some_shards = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["good", "html", *BAD]), max_size=5),
        st.sampled_from(["whole", "whole", "cut", "no tar"]),
    ),
    min_size=1, max_size=3,
)  # fmt: skip


def write_shards(folder: Path, shards: Shards) -> Path:
    folder.mkdir()
    for number, (kinds, way) in enumerate(shards):
        members: list[Member] = list(GOOD)
        for row, kind in enumerate(kinds):
            seed = 100 * number + row + 10
            members += BAD.get(kind) or sample_members(f"{seed}", seed, original_width=7)
            members += [(f"{seed}html.jpg", b"<html>")] if kind == "html" else []
        (folder / f"{number:05d}.tar").write_bytes(broken(tar_bytes(members), way))
    return folder


@settings(max_examples=8)
@given(some_shards, st.sampled_from(sorted(COMMANDS)), st.integers(0, 20))
def test_any_pool_and_any_kill_give_the_files_of_a_pool_indexed_first(
    shards: Shards, name: str, kill: int
) -> None:
    folder = fresh_folder()
    pool, work = write_shards(folder / "pool", shards), folder / "w"
    storm = Storm(Fault("rename", "killed after", kill))
    with contextlib.suppress(Killed), on_disk(storm):
        COMMANDS[name](open_workspace(pool, work, max_failures=1.0))
    COMMANDS[name](open_workspace(pool, work, max_failures=1.0))
    assert is_as_indexed_first(pool, work, COMMANDS[name])
