"""Which reader a worker announces the next shard to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from capmix.engine.read_ahead import ReadAhead
from capmix.engine.stage import PartWriter, Stage
from capmix.engine.worker import MADE, Job, Worker
from capmix.pool import Shard
from capmix.storage.store import Store

SHARDS = [Shard("0", "print"), Shard("1", "print")]


class Announced(ReadAhead[Shard, Any, Any]):
    """Records what is announced; announcing a shard fails with `error`."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(lambda _: (), str, 1, 1)
        self.seen: list[str | None] = []
        self.error = error

    def follow(self, shard: Shard | None) -> None:
        self.seen.append(None if shard is None else shard.name)
        if shard is not None and self.error is not None:
            raise self.error


def stage(number: int, ahead: Announced | None) -> Stage:
    def run_shard(shard: Shard, out: PartWriter) -> None:
        out.draft.write_table(f"{out.part}.parquet", _table())

    return Stage(f"stage {number}", f"s{number}", {}, lambda _: {}, run_shard, ahead=ahead)


def _table() -> Any:
    import pyarrow as pa

    return pa.table({"uid": pa.array([], pa.string())})


def run_first_task(work: Path, readers: list[Announced | None], retry: bool = False) -> str:
    stages = [stage(number, ahead) for number, ahead in enumerate(readers)]
    worker = Worker(Job(lambda: stages, SHARDS, Store(str(work)), retry=retry))
    first, following = worker.plan().tasks
    following = replace(following, stages=tuple(range(len(stages))))
    return worker.run(first, lambda _: None, following).state


def test_only_the_first_stage_of_the_next_task_that_reads_gets_the_shard(tmp_path: Path) -> None:
    first, second = Announced(), Announced()
    assert run_first_task(tmp_path, [None, first, second]) == MADE
    assert (first.seen, second.seen) == (["1"], [None])


def test_stages_that_share_a_reader_announce_the_shard_once(tmp_path: Path) -> None:
    shared = Announced()
    assert run_first_task(tmp_path, [shared, shared]) == MADE
    assert shared.seen == ["1"]


def test_a_retry_announces_nothing(tmp_path: Path) -> None:
    reader = Announced()
    assert run_first_task(tmp_path, [reader], retry=True) == MADE
    assert reader.seen == [None]


@pytest.mark.parametrize("error", [OSError("connection reset")])
def test_an_announcement_that_fails_does_not_fail_the_current_shard(
    tmp_path: Path, error: Exception
) -> None:
    assert run_first_task(tmp_path, [Announced(error)]) == MADE
