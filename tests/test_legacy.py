"""Work directories of released versions remain valid: nothing is recomputed or rejected.

`data/work-0.1.tar.gz` has a pool with its file times, a work directory and an export by capmix
0.1.0: captions by the embedded captioner (two settings), from a field and imported; scores,
clusters, measures and a subset. `data/work-0.2.tar.gz` has the same by the first version whose
markers have a format number. Every later version must resume from both.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from capmix.cli.main import main
from capmix.engine.stage import PartWriter, Stage
from capmix.models.index import FIELDS, NEW, index_stages, pool_inputs
from capmix.pool import Shard
from capmix.storage.layout import SAMPLES
from capmix.storage.rows import column_names
from capmix.workspace import Workspace, open_workspace

DATA = Path(__file__).parent / "data"
VERSIONS = [path.name for path in sorted(DATA.glob("work-*.tar.gz"))]
BUDGET = ["--max-failures", "0.2"]  # one of nine samples is broken
COMMANDS = [
    "caption --source mini --model mini --captions-per-image 2",
    "caption --source tags --model field:tags",
    "caption --source warm --model mini --temperature 1.5 --top-k 10 --language en",
    "score --sources raw,mini,tags,given --model mini",
    "measure --topics 0 --sample 100",
    "mix --recipe raw-top+synthetic-above --fraction 0.5 --synthetic mini",
]


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(DATA / name) as archive:
        archive.extractall(folder, filter="fully_trusted")  # restores file times
    about = folder / "work/pool.json"
    about.write_text(json.dumps({"pool": str((folder / "pool").resolve())}))
    return folder


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return unpacked(request.param, tmp_path)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and contents of every file except markers, by name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


def opened(old: Path, **options: Any) -> Workspace:
    return open_workspace(work=str(old / "work"), max_failures=0.2, **options)


def test_every_stage_finds_its_parts_done(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(old / "work")
    for command in COMMANDS:
        name, *options = command.split()
        assert main([name, "--work", str(old / "work"), *options, *BUDGET]) == 0, command
    err = capsys.readouterr().err
    assert err.count("already done") >= 10
    assert "images/s" not in err
    assert contents(old / "work") == before


def test_an_export_is_finished(old: Path) -> None:
    before = contents(old / "shards")
    subset = opened(old).subset("raw-top50+mini-above")
    assert subset.export(str(old / "shards"), samples_per_shard=3).ok == 8
    after = contents(old / "shards")
    # The old card may have been edited, so the new one is written next to it.
    assert after.keys() - before.keys() == {"README.new.md", ".manifest/export.txt"}
    assert {name: after[name] for name in before} == before


def test_nothing_is_stale_and_folders_are_tables(old: Path) -> None:
    import pandas as pd

    work = opened(old)
    for stage in work.status().stages:
        assert (stage.missing, stage.stale) == (0, 0), stage.stage
    table = pd.read_parquet(old / "work/captions/mini")
    assert len(table) == 17  # two captions for each of eight samples, and the broken one


def test_a_setting_that_differs_is_still_refused(old: Path) -> None:
    command = ["caption", "--work", str(old / "work"), "--source", "mini", "--model", "mini"]
    assert main([*command, "--captions-per-image", "3", *BUDGET]) == 2
    assert main([*command, *BUDGET]) == 2  # differs from the default that was used


def test_a_column_that_is_missing_is_made_not_passed_over(old: Path) -> None:
    """An index that lacks a new column is recomputed, not treated as complete."""
    work = opened(old)
    (index,) = index_stages(work.pool)
    more = [*FIELDS, ("aspect", FIELDS[1][1])]
    assert index.columns == column_names(FIELDS[:-NEW])
    made: list[str] = []

    def run_shard(shard: Shard, out: PartWriter) -> None:
        made.append(shard.name)
        index.run_shard(shard, out)

    stage = Stage("index", SAMPLES, {}, pool_inputs, run_shard, columns=column_names(more))
    work.run(lambda: [stage])
    assert sorted(made) == ["00000", "00001"]


def test_captions_get_a_new_column_without_being_written_again(old: Path) -> None:
    import pyarrow as pa

    from capmix.caption.captioners import caption_stages
    from capmix.caption.fields import NEEDED
    from capmix.caption.settings import CaptionSettings
    from capmix.storage.rows import with_columns

    work = opened(old)
    settings = CaptionSettings(model="mini", captions_per_image=2)
    stage = caption_stages(work.pool, work.store, "mini", settings)[-1]
    before = work.store.read_table("captions/mini/00000.parquet")

    def no_model(shard: Shard, out: PartWriter) -> None:
        raise AssertionError("captions were written again")

    more = [*NEEDED, ("tokens", pa.int32())]
    newer = Stage(
        stage.name, stage.folder, stage.config, stage.inputs, no_model, stage.reads,
        defaults=stage.defaults, columns=column_names(more), upgrade=with_columns(more),
    )  # fmt: skip
    known = work.store.fingerprint("captions/mini/00000")
    (counts,) = work.run(lambda: [newer])
    assert counts.ok == 8
    assert work.store.fingerprint("captions/mini/00000") == known  # so their scores stay valid
    after = work.store.read_table("captions/mini/00000.parquet")
    assert after.column_names == [*before.column_names, "tokens"]
    assert after.select(before.column_names).equals(before)
    marker = work.store.read_marker("captions/mini/00000")
    assert marker is not None
    assert marker.columns[-1] == "tokens"


def test_a_new_option_at_its_default_changes_nothing(old: Path) -> None:
    """For example --top-p: its default is the behaviour before the option existed."""
    from capmix.caption.captioners import caption_stages
    from capmix.caption.settings import CaptionSettings

    work = opened(old)
    settings = CaptionSettings(model="mini", captions_per_image=2)
    stage = caption_stages(work.pool, work.store, "mini", settings)[-1]
    for value, done in ((1.0, True), (0.9, False)):
        config = stage.config | {"top_p": value}
        defaults = {**stage.defaults, "top_p": 1.0}
        part, inputs = "captions/mini/00000", stage.inputs(work.pool.shards[0])
        assert work.store.is_done(part, inputs, config, defaults) is done
