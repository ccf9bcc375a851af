"""`capmix clean` removes exactly what is requested, and only files of capmix."""

import json
import os
import shutil
import socket
from functools import partial
from pathlib import Path

import pytest
from null_models import null_captions, null_scores
from samples import write_pool

from capmix.cli.main import main
from capmix.engine.partial import PartialPart
from capmix.errors import UserError
from capmix.inspect import clean as module
from capmix.storage.temporary import process_namespace
from capmix.workspace import Workspace, open_workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    work = open_workspace(str(write_pool(folder / "pool", 2, 4)), str(folder / "w"))
    work.index()
    for source in ("null", "other"):
        work.run(partial(null_captions, work.pool, source))
    work.run(partial(null_scores, work.pool, work.store, ["raw", "null", "other"]))
    work.mix("raw-top")
    work.mix("raw-top+synthetic", synthetic="null", npy=True)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(made, tmp_path / "c")
    (tmp_path / "c/w/pool.json").write_text(json.dumps({"pool": str(tmp_path / "c/pool")}))
    # Modification times are those of the copies.
    shutil.copytree(made / "pool", tmp_path / "c/pool", dirs_exist_ok=True)
    return open_workspace(work=str(tmp_path / "c/w"))


def files(work: Workspace) -> set[str]:
    root = Path(work.store.root)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_fresh_work_directory_has_no_leftovers(work: Workspace) -> None:
    before = files(work)
    assert work.clean(yes=True).removals == []
    assert files(work) == before


def test_a_source_goes_with_all_that_was_made_from_it(work: Workspace) -> None:
    before = files(work)
    shown = work.clean(sources="null")
    assert [(one.about, len(one.parts), len(one.files)) for one in shown.removals] == [
        ("subsets/raw-top30+null, derived from null", 1, 3),
        ("scores/null/null", 2, 4),
        ("captions/null", 2, 2),
    ]
    assert files(work) == before
    found = work.clean(sources="null", yes=True)
    gone = before - files(work)
    assert found.bytes == shown.bytes == sum(one.bytes for one in shown.removals) > 0
    assert len(gone) == 9 + 5  # files and markers
    assert all("null/0" in name or "raw-top30+null" in name for name in gone)
    assert work.sources() == ["raw", "other"]
    assert work.subsets() == ["raw-top30"]
    assert not (Path(work.store.root) / "captions/null").exists()
    assert work.clean().removals == []


def test_a_subset_goes_alone(work: Workspace) -> None:
    before = files(work)
    work.clean(subsets="raw-top30", yes=True)
    assert sorted(before - files(work)) == [
        ".markers/subsets/raw-top30.json",
        "subsets/.shards/raw-top30.parquet",
        "subsets/raw-top30.npy",
        "subsets/raw-top30.parquet",
    ]


def test_leftovers(work: Workspace) -> None:
    root = Path(work.store.root)
    shutil.rmtree(root / "captions/other")
    shutil.rmtree(root / ".markers/captions/other")
    (root / ".markers/scores/null/null/00001.json").unlink()  # its copy and its table are kept
    (root / "notes").mkdir()
    for name in ("notes/mine.txt", "captions/null/mine.csv", "captions/null/00009.parquet"):
        (root / name).write_text("a user's")
    dead = root / f"captions/null/.{process_namespace()}.999999999.00000000.tmp"
    dead.write_text("half")
    (Path(work.pool.location) / "00001.tar").unlink()
    write_pool(Path(work.pool.location), 1, 5)
    before = files(work)
    reopened = Workspace(open_workspace(work.pool.location, str(root) + "2").pool, work.store)
    found = reopened.clean(yes=True)
    assert [one.about for one in found.removals] == [
        "temporary files of dead processes",
        "scores/null/other: captions no longer exist",
        "fields: inputs have changed",
        "samples: inputs have changed",
        "scores/null/null: inputs have changed",
        "scores/null/raw: inputs have changed",
        "fields: shards no longer in the pool",
        "samples: shards no longer in the pool",
        "copies of scores that no longer exist",
    ]
    assert {"notes/mine.txt", "captions/null/mine.csv", "captions/null/00009.parquet"} < files(work)
    gone = before - files(work)
    assert {"samples/00000.parquet", "samples/00001.parquet", ".arrays/scores/null/null/00001",
            f"captions/null/{dead.name}"} < gone  # fmt: skip
    # Stale captions are not leftovers: the next run reuses those of unchanged images.
    assert {"captions/null/00000.parquet", "captions/null/00001.parquet"}.isdisjoint(gone)


def test_unfinished_captions_go_with_their_source_or_their_shard(work: Workspace) -> None:
    before = files(work)
    for source, shard in (("null", "00000"), ("new", "00001"), ("new", "gone")):
        part = PartialPart(work.store, f"captions/{source}", shard, "")
        part.add([["some captions"]])
        part.close()
    (found,) = work.clean(yes=True).removals
    assert found.about == "unfinished captions of shards no longer in the pool"
    assert (len(found.files), found.parts) == (1, [])
    (found,) = work.clean(sources="new", yes=True).removals
    assert (found.about, len(found.files)) == ("captions/new", 1)
    assert len(files(work) - before) == 1
    work.clean(sources="null", yes=True)
    assert files(work) < before
    assert not (Path(work.store.root) / ".partial").exists()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_kill_leaves_whole_parts_and_the_rest_can_be_removed(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    left = step

    def dies(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    for name in ("remove_marker", "remove"):
        real = getattr(type(work.store), name)
        monkeypatch.setattr(
            type(work.store), name, lambda self, one, real=real: (dies(), real(self, one))
        )
    with pytest.raises(KeyboardInterrupt):
        work.clean(sources="null", yes=True)
    monkeypatch.undo()
    for part in work.store.parts(""):
        marker = work.store.read_marker(part)
        assert marker is not None
        assert work.store.damage(marker) == {}, part
    work.clean(sources="null", yes=True)
    assert work.sources() == ["raw", "other"]
    assert not [name for name in files(work) if "null/null" in name or "captions/null" in name]


def test_nothing_is_removed_while_a_run_is_at_work(work: Workspace) -> None:
    run = Path(work.store.root) / "running/x"
    run.parent.mkdir()
    about = {"process": os.getpid(), "host": socket.gethostname()}
    run.write_text(json.dumps(about | {"namespace": process_namespace()}))
    before = files(work)
    with pytest.raises(UserError, match=rf"clean: another .* \(process {os.getpid()} on .*wait"):
        work.clean(sources="null", yes=True)
    assert work.status().running == [f"process {os.getpid()} on {socket.gethostname()}"]
    run.unlink()
    mine = Path(work.store.root) / f"captions/.{process_namespace()}.{os.getpid()}.00000000.tmp"
    mine.write_text("")
    with pytest.raises(UserError, match="it is writing captions/"):
        work.clean(subsets="raw-top30", yes=True)
    mine.unlink()
    assert files(work) == before - {"running/x"}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"sources": "nul"}, "clean: no source 'nul'; did you mean 'null'?"),
        ({"sources": "raw"}, "clean: raw is the pool's own text"),
        ({"sources": "../pool"}, r"clean: no source '\.\./pool'"),
        ({"subsets": "raw-top"}, "clean: no subset 'raw-top'; did you mean 'raw-top30'?"),
    ],
)
def test_a_name_that_is_not_there(work: Workspace, named: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        work.clean(yes=True, **named)  # type: ignore[arg-type]


def test_a_marker_names_no_file_of_others() -> None:
    assert module._is_of("subsets/.shards/a.parquet", "subsets/a")
    for file in ("../a.parquet", "subsets/../pool/a.parquet", "pool/a.parquet", "subsets/ab.npy"):
        assert not module._is_of(file, "subsets/a")


def test_the_command(work: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "--work", work.store.root, "--source", "other"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["what", "parts", "files", "size"]
    assert lines[-1].startswith("would remove ")
    assert lines[-1].endswith("; rerun with --yes")
    assert main(["clean", "--work", work.store.root, "--source", "other", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed ")
    assert work.sources() == ["raw", "null"]
