"""Commands that are killed after any of their renames, when rerun, end as if undisturbed."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_world as world
from storm import Fault, Killed, Storm, on_disk

from capmix.storage.marker import UNFINGERPRINTED
from capmix.view.journal import Journal, Review
from capmix.view.parts import journal_folder
from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.workspace import Workspace

Command = Callable[[Workspace, Path], Any]


def edit_and_fold(work: Workspace) -> None:
    """Edit and tag a sample, and write the parts, as `capmix view` does. A rerun only writes the
    parts."""
    journal = Journal(journal_folder(work.store, "edited"), "ann", now=lambda: "2026-01-02T03:04Z")
    said = Review(text="an edited text", edited=True, tags=("odd",))
    journal.act("edit", [("00000", f"{1:032x}", -1, lambda _: said)])
    make_workbench(work.catalog, ViewSettings()).fold(everything=True)


COMMANDS: dict[str, Command] = {
    "caption": lambda work, _: world.caption(work, "first"),
    "caption --force": lambda work, _: world.caption(work, "second", force=True),
    "score": lambda work, _: world.score(work),
    "import captions": lambda work, folder: work.import_captions(
        folder / "captions.csv", source="given", force=True
    ),
    "import scores": lambda work, folder: work.import_scores(
        folder / "scores.csv", source="tags", scorer="other"
    ),
    "annotate": lambda work, _: work.annotate(method="clusters", name="groups", clusters=2),
    "mix": lambda work, folder: world.mix(work, folder),
    "mix --seed 1": lambda work, folder: world.mix(work, folder, 1),
    "mix without uids": lambda work, _: world.mix_captions(work),
    "measure": lambda work, _: work.measure(sample=100, topics=0),
    "report": lambda work, _: work.report(),
    "view": lambda work, _: edit_and_fold(work),
    "export": lambda work, folder: world.export(work, str(folder / "out")),
    "export --format jsonl": lambda work, folder: work.export(
        "s", folder / "files", format="jsonl", samples_per_shard=50
    ),
}
# Commands that run before the one under test, in this order.
BEFORE = ("caption", "score", "mix")


def opened(folder: Path) -> Workspace:
    return world.opened(folder, str(folder / "work"))


def files(folder: Path) -> dict[str, Any]:
    """Return the files that must be equal: all except notes of active runs, temporary files,
    provenance in markers, and array copies that the next reader creates."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if "/running/" in name or "/.arrays/" in name or name.endswith(".tmp"):
            continue
        found[name] = path.read_bytes()
        if "marker" in name:
            value = json.loads(found[name])
            found[name] = {key: one for key, one in value.items() if key not in UNFINGERPRINTED}
    return found


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder in which commands run, and a copy of its state before the command."""
    top = tmp_path_factory.mktemp("kills")
    folder = world.write_world(top / "world")
    uids = list(world.samples(folder))
    rows = "".join(f"{uid},text of {uid}\n" for uid in uids)
    (folder / "captions.csv").write_text("uid,text\n" + rows)
    rows = "".join(f"{uid},0.{number}\n" for number, uid in enumerate(uids))
    (folder / "scores.csv").write_text("uid,score\n" + rows)
    for name in BEFORE:
        COMMANDS[name](opened(folder), folder)
    shutil.copytree(folder, top / "before")
    return folder, top / "before"


@pytest.fixture(autouse=True)
def dated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports show the minute in which they are written."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_after_any_rename_changes_nothing_in_the_end(
    name: str, states: tuple[Path, Path]
) -> None:
    folder, before = states

    def begin() -> None:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        if name in BEFORE:  # otherwise it would have nothing to do
            shutil.rmtree(folder / "work")
            for earlier in BEFORE[: BEFORE.index(name)]:
                COMMANDS[earlier](opened(folder), folder)

    kill_and_compare(COMMANDS[name], folder, begin)


@pytest.mark.slow
def test_a_kill_after_any_rename_of_probe_changes_nothing_in_the_end(tmp_path: Path) -> None:
    folder, before = world.write_world(tmp_path / "world"), tmp_path / "before"
    for name in BEFORE:
        COMMANDS[name](opened(folder), folder)
    opened(folder).probe(
        subsets=["s"], seeds=[0]
    )  # computes the embeddings of the sets' images once
    shutil.copytree(folder, before)

    def begin() -> None:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)

    kill_and_compare(lambda work, _: work.probe(subsets=["s"], seeds=[1]), folder, begin)


def kill_and_compare(command: Command, folder: Path, begin: Callable[[], None]) -> None:
    """Compare a command that was killed and rerun with an undisturbed one.

    It is killed after its first rename, its second, and so on. `begin` restores the folder.
    """
    begin()
    command(opened(folder), folder)
    expected, number = files(folder), 0
    while True:
        begin()
        storm = Storm(Fault("rename", "killed after", number))
        with contextlib.suppress(Killed), on_disk(storm):
            command(opened(folder), folder)
        if not storm.happened:
            break
        command(opened(folder), folder)
        found = files(folder)
        assert found.keys() == expected.keys(), number
        for name in found:
            assert found[name] == expected[name], (number, name)
        number += 1
    assert number > 0
