"""Stages that read all images index the pool in the same read."""

from collections import Counter
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_captioner import MODEL
from samples import write_pool

from capmix.pool import BadSample, Pool, Sample, Shard
from capmix.workspace import Workspace, open_workspace

Reads = Counter[str]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The number of times that each shard was read."""
    found: Reads = Counter()
    read = Pool.read

    def counted(
        self: Pool, shard: Shard, keys: Container[str] | None = None
    ) -> Iterator[Sample | BadSample]:
        found[shard.name] += 1
        return read(self, shard, keys)

    monkeypatch.setattr(Pool, "read", counted)
    return found


def caption(work: Workspace, **options: Any) -> None:
    work.caption("c", model=MODEL, **options)


def score(work: Workspace, **options: Any) -> None:
    work.score(model="null_models:NullScorer", **options)


def test_captioning_a_new_pool_reads_each_shard_once(tmp_path: Path, reads: Reads) -> None:
    work = open_workspace(write_pool(tmp_path / "pool"), tmp_path / "w")
    caption(work)
    assert reads == {"00000": 1, "00001": 1}
    assert work.index() is None
    assert work.table(columns=["xxh3"]).num_rows == 8
