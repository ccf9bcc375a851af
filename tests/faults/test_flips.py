"""Flip one bit of one file: commands return the same results as before or report the damage.

`make test-faults` flips CAPMIX_FLIPS bits; `make test` flips a few bits in each kind of file.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_world as world

from capmix.errors import UserError
from capmix.workspace import Workspace

FLIPS = int(os.environ.get("CAPMIX_FLIPS", "26"))
KINDS = {
    "index": "work/samples/*.parquet",
    "captions": "work/captions/tags/*.parquet",
    "scores": "work/scores/null/*/*.parquet",
    "embeddings": "work/embeddings/null/image/*.npy",
    "rows of embeddings": "work/embeddings/null/image/*.parquet",
    "annotation": "work/columns/groups/*.parquet",
    "subset": "work/subsets/s.parquet",
    "uids of a subset": "work/subsets/s.npy",
    "measures": "work/measures/*.parquet",
    "markers": "work/.markers/**/*.json",
    "pool.json": "work/pool.json",
    "pool": "pool/*.tar",
    "export": "out/*.tar",
}


def computed(folder: Path) -> dict[str, Any]:
    """Return the result of each command on a work directory, or the message of its error."""
    recipe = str(folder / "recipe.yaml")

    def opened() -> Workspace:
        return world.opened(folder, str(folder / "work"))

    def mixed(name: str) -> bytes:
        opened().mix(recipe, out=name, npy=True, where="groups_cluster >= 0")
        path = folder / f"work/subsets/{name}"
        return path.with_suffix(".parquet").read_bytes() + path.with_suffix(".npy").read_bytes()

    def exported() -> Any:
        work = opened()
        world.mix(work, folder)
        counts = work.export("s", str(folder / "again"), samples_per_shard=50)
        tars = b"".join(p.read_bytes() for p in sorted((folder / "again").glob("*.tar")))
        return f"{counts.failed.total()} failed" if counts.failed else tars

    def export_verified() -> Any:
        found = opened().verify([str(folder / "out")])
        tars = b"".join(p.read_bytes() for p in sorted((folder / "out").glob("*.tar")))
        return "damaged" if found.damaged else tars

    def annotated() -> bytes:
        opened().annotate(method="clusters", name="more", clusters=2)
        parts = sorted((folder / "work/columns/more").glob("*.parquet"))
        return b"".join(part.read_bytes() for part in parts)

    steps: dict[str, Callable[[], Any]] = {
        "table": lambda: opened().table(columns=["groups_cluster"]).to_pylist(),
        "mix": lambda: mixed("t"),
        "annotate": annotated,
        "export": exported,
        "verified export": export_verified,
        "measure": lambda: opened().measure(sample=100, topics=0)["population"],
        "subset": lambda: opened().subset("s").table().to_pylist(),
    }
    found: dict[str, Any] = {}
    for name, step in steps.items():
        try:
            found[name] = step()
        except (UserError, OSError) as error:
            found[name] = f"error: {error}"
    return found


def is_reported(value: Any) -> bool:
    return isinstance(value, str)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A work directory with all kinds of parts, and the results of the commands on it."""
    folder = world.write_world(tmp_path_factory.mktemp("flips") / "whole")
    work = world.opened(folder, str(folder / "work"))
    world.caption(work, "first")
    world.score(work)
    work.annotate(method="clusters", name="groups", clusters=2)
    world.mix(work, folder)
    work.measure(sample=100, topics=0)
    world.export(work, str(folder / "out"))
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    expected = computed(folder)
    assert not any(map(is_reported, expected.values())), expected
    return folder, expected


def flip(path: Path, bit: int) -> None:
    """Flip a bit without a change of the file's size and modification time."""
    about = path.stat()
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_flipped_bit_changes_nothing_silently(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = whole
    chance = random.Random(17)
    told, silent = Counter[str](), []
    for number in range(FLIPS):
        kind = list(KINDS)[number % len(KINDS)]
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "kept", folder)
        path = chance.choice(sorted(folder.glob(KINDS[kind])))
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        found = computed(folder)
        different = [name for name in expected if found[name] != expected[name]]
        silent += [
            f"{kind}: {path.relative_to(folder)} bit {bit}: {name}"
            for name in different
            if not is_reported(found[name])
        ]
        said = [value for value in found.values() if is_reported(value)]
        assert not any("\n" in value for value in said), said
        told[kind] += bool(said)
    print(f"\n{FLIPS} flips, by kind those that a command reported: {dict(told)}")
    assert silent == []
    for kind in ("captions", "scores", "embeddings"):  # every flipped bit must be detected
        assert told[kind] == len(range(list(KINDS).index(kind), FLIPS, len(KINDS)))
