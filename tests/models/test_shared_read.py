"""Stages that read all images index the pool in the same read."""

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

from capmix.errors import UserError
from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.storage.marker import UNFINGERPRINTED
from capmix.workspace import Workspace, open_workspace

Reads = Counter[str]
Command = Callable[[Workspace], Any]


class Embedding(NullScorer):
    """A captioner and a scorer of saved embeddings."""

    def caption(self, embeddings: Any, uids: Sequence[str], source: str) -> Any:
        return CountingCaptioner(self.chosen).caption(uids, uids, source)

    def __init__(self, chosen: Any, source: str = ""):
        self.chosen, self.device = chosen, "cpu"


def caption(work: Workspace, model: str = MODEL, **options: Any) -> None:
    work.caption("c", model=model, **options)


def embed_and_caption(work: Workspace) -> None:
    caption(work, f"{__name__}:Embedding")


def score(work: Workspace, **options: Any) -> None:
    work.score(model=small_world.MODEL, **options)


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
        if name.startswith((".running", ".arrays", "pool.json")):
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
