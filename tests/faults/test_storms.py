"""Sequences of commands on failing storage end like undisturbed runs, or the failure is reported.

`make test-faults` runs this for CAPMIX_STORM_MINUTES; `make test` tries a few sequences.
"""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest
import small_world as world
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from storm import WAYS, Fault, Killed, Storm, on_disk, on_object_store, use_object_store

from capmix.errors import UserError
from capmix.storage.layout import FIELDS
from capmix.storage.marker import UNFINGERPRINTED
from capmix.workspace import Workspace

MINUTES = float(os.environ.get("CAPMIX_STORM_MINUTES", "0"))
OPTIONS = settings(
    max_examples=100 if MINUTES else 10,
    phases=[Phase.explicit, Phase.reuse, Phase.generate] + ([] if MINUTES else [Phase.shrink]),
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
COMMANDS = tuple(world.commands(Path(), ""))
tried = {"sequences": 0, "faults": 0, "flips": 0, "reported": 0}


@dataclass(frozen=True)
class Step:
    """Command, and a storage fault that occurs while it runs."""

    command: str
    fault: Fault | None = None


@dataclass(frozen=True)
class Flip:
    """Position of a flipped bit: the file and the bit in it, both as fractions."""

    file: float
    bit: float


faults = st.sampled_from(sorted(WAYS)).flatmap(
    lambda call: st.builds(Fault, st.just(call), st.sampled_from(WAYS[call]), st.integers(0, 12))
)
steps = st.builds(Step, st.sampled_from(COMMANDS), st.none() | faults)
flips = st.builds(Flip, st.floats(0, 0.999), st.floats(0, 0.999))
sequences = st.lists(st.one_of(steps, steps, steps, flips), min_size=1, max_size=7)


class Place:
    """Location of a work directory and an export, on a disk or an object store."""

    def __init__(self, folder: Path, is_remote: bool):
        self.is_remote = is_remote
        self.work = "memory://work" if is_remote else str(folder / "work")
        self.out = "memory://out" if is_remote else str(folder / "out")
        self.around = on_object_store if is_remote else on_disk
        self.fs, _ = fsspec.core.url_to_fs(self.work)
        self.roots = tuple(fsspec.core.url_to_fs(one)[1] for one in (self.work, self.out))

    def files(self) -> dict[str, bytes]:
        """Return all files by path, without those of active processes and without `fields`, whose
        damaged parts are recreated only when a recipe uses a field."""
        found = {}
        for root in self.roots:
            with contextlib.suppress(FileNotFoundError):
                for path in self.fs.find(root):
                    is_left_out = any(f"/{one}/" in path for one in ("running", FIELDS))
                    if not is_left_out and not path.endswith(".tmp"):
                        found[path[len(root.rpartition("/")[0]) :]] = bytes(self.fs.cat_file(path))
        return found

    def flip(self, flip: Flip) -> None:
        """Flip a bit without a change of the file's size and modification time."""
        names = [n for root in self.roots for n in sorted(self.fs.find(root)) if self.fs.size(n)]
        if not names:
            return
        name = names[int(flip.file * len(names))]
        data = bytearray(self.fs.cat_file(name))
        bit = int(flip.bit * len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        about = None if self.is_remote else os.stat(name)
        with on_object_store(Storm(None)) if self.is_remote else contextlib.nullcontext():
            self.fs.pipe_file(name, bytes(data))
        if about is not None:
            os.utime(name, ns=(about.st_atime_ns, about.st_mtime_ns))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(name, recursive=True)


def without_provenance(name: str, data: bytes) -> Any:
    if not name.endswith(".json") or "marker" not in name:
        return data
    value = json.loads(data)
    return {key: one for key, one in value.items() if key not in UNFINGERPRINTED}


@cache
def the_world() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="world-"))
    return world.write_world(folder)


@cache
def undisturbed(is_remote: bool) -> dict[str, Any]:
    """Return the files after only the settling commands."""
    use_object_store()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), is_remote)
        commands = world.commands(the_world(), place.out)
        with place.around(Storm(None)):
            for name in world.SETTLED:
                commands[name](world.opened(the_world(), place.work))
            return {name: without_provenance(name, one) for name, one in place.files().items()}


def report(place: Place, command: Callable[[Workspace], None], storm: Storm) -> str:
    """Return the error of a command, "" if it succeeds, or "killed" if it dies silently."""
    try:
        with place.around(storm):
            command(world.opened(the_world(), place.work))
    except Killed:
        return "killed"
    except (UserError, OSError) as error:
        return str(error)
    return "" if not storm.is_dead else "killed"


def wrong(place: Place) -> list[str]:
    """Return errors in the subset and the export that capmix does not detect."""
    work = world.opened(the_world(), place.work)
    is_export = any(name.endswith("/out/_capmix_export.json") for name in place.files())
    exports = [place.out] if is_export else []
    damaged = {one.part for one in work.verify(exports).damaged}
    files = place.files()
    known = world.samples(the_world())
    found = []
    if "subsets/s" not in damaged and any(n.endswith(".markers/subsets/s.json") for n in files):
        with contextlib.suppress(UserError):  # an overwritten text is reported
            found += world.wrong_rows(work, known)
    done = {
        name.rpartition("/")[2].removesuffix(".json") for name in files if "/out/_markers/" in name
    } - damaged
    tars = {n: data for n, data in files.items() if n.endswith(".tar") and Path(n).stem in done}
    return found + world.wrong_pairs(tars, known)


def settle(place: Place) -> None:
    """Do what a user does after a failure: verify, rerun the commands, and follow the messages."""
    commands = world.commands(the_world(), place.out)
    if report(place, lambda _: None, Storm(None)).count("pool.json"):
        place.remove(f"{place.roots[0]}/pool.json")
    work = world.opened(the_world(), place.work)
    exports = (
        [place.out]
        if f"{Path(place.out).name}/_capmix_export.json" in " ".join(place.files())
        else []
    )
    work.verify(exports, discard=True)
    for name in world.SETTLED:
        message = report(place, commands[name], Storm(None))
        if name == "export" and message:
            assert place.out.rpartition("/")[2] in message, message
            place.remove(place.roots[1])
            message = report(place, commands[name], Storm(None))
        assert message == "", f"{name}: {message}"


def check(sequence: list[Step | Flip], is_remote: bool) -> None:
    expected = undisturbed(is_remote)
    use_object_store()
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    place = Place(folder, is_remote)
    commands = world.commands(the_world(), place.out)
    tried["sequences"] += 1
    try:
        for step in sequence:
            if isinstance(step, Flip):
                place.flip(step)
                tried["flips"] += 1
                continue
            storm = Storm(step.fault)
            message = report(place, commands[step.command], storm)
            assert "\n" not in message
            tried["faults"] += storm.happened
            tried["reported"] += message not in ("", "killed")
            with contextlib.suppress(UserError):
                assert wrong(place) == []
        settle(place)
        found = {name: without_provenance(name, one) for name, one in place.files().items()}
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    yield
    print(f"\nstorms: {tried}")


@pytest.mark.parametrize("is_remote", [False, True], ids=["disk", "object store"])
def test_the_final_files_are_those_of_undisturbed_runs(is_remote: bool) -> None:
    until = time.monotonic() + MINUTES * 30
    first = time.time_ns() if MINUTES else 0
    for number in itertools.count(first):

        @seed(number)
        @OPTIONS
        @given(sequences)
        @example([Step("caption first"), Step("score"), Step("mix"), Flip(0.9, 0.5)])
        def attempt(sequence: list[Step | Flip]) -> None:
            check(sequence, is_remote)

        attempt()
        if time.monotonic() >= until:
            break
