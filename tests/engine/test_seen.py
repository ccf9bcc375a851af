"""Workers report each part while they compute it, and mark reports that include loading."""

from functools import partial
from pathlib import Path

import pytest
from null_models import null_captions
from samples import write_pool

from capmix.engine import seen as seen_module
from capmix.engine.seen import Seen
from capmix.engine.worker import Job, Worker
from capmix.workspace import open_workspace


def test_the_first_reports_are_those_until_a_model_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not loaded for an unreadable shard."""
    monkeypatch.setattr(seen_module, "REPORT_INTERVAL", 1e9)  # only the first and last
    write_pool(tmp_path / "pool", shards=3, samples=4)
    (tmp_path / "pool/00000.tar").write_bytes(b"no tar")
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
    worker = Worker(Job(partial(null_captions, work.pool), work.pool.shards, work.store))
    seen: list[Seen] = []
    for task in worker.plan().tasks:
        worker.run(task, seen.append)
    assert [(one.shard, one.rows, one.ok, one.failed, one.is_first) for one in seen] == [
        ("00000", 0, 0, 0, True),
        ("00000", 1, 0, 1, True),
        ("00001", 0, 0, 0, True),
        ("00001", 4, 4, 0, True),
        ("00002", 0, 0, 0, False),
        ("00002", 4, 4, 0, False),
    ]
