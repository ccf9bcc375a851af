"""A damaged marker counts as a missing part: its stage recomputes it, readers name the shard."""

import json
import shutil
from pathlib import Path

import pytest
from damage import FORMS, changed_values, damage
from samples import write_pool

from capmix.cli.main import main
from capmix.storage.marker import marker_digest
from capmix.storage.store import Store

CAPTION = "caption --source a --model field:caption"
SCORE = "import scores scores.csv --source a --scorer s"
MIX = "mix --recipe raw --where a_score>0 --out s"
EXPORT = "export --subset s --out out"
MEASURE, REPORT = "measure --topics 0", "report"
READERS = ("status", "failures", MIX, EXPORT, MEASURE, REPORT)
MARKERS = {  # kind of part -> (marker, command that creates it)
    "index": ("w/.markers/samples/00000.json", MIX),
    "captions": ("w/.markers/captions/a/00000.json", CAPTION),
    "scores": ("w/.markers/scores/s/a/00000.json", SCORE),
    "population": ("w/.markers/measures/population.json", MEASURE),
    "sampled": ("w/.markers/measures/sampled.json", MEASURE),
    "subset": ("w/.markers/subsets/s.json", MIX),
    "exported": ("out/_markers/00000000.json", EXPORT),
    "export": ("out/_capmix_export.json", EXPORT),
}
BROKEN = ("truncated", "empty", "null", "numbers", "deep_list", "deep_object", "not_utf8")
HOWS = [
    how if how in ("truncated", "deep_object") else pytest.param(how, marks=pytest.mark.slow)
    for how in BROKEN
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("markers")
    write_pool(folder / "pool", 2, 3)
    rows = [f"{shard * 100 + row:032x},0.5" for shard in range(2) for row in range(3)]
    (folder / "scores.csv").write_text("\n".join(["uid,score", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*CAPTION.split(), "--work", "w", "pool"]) == 0
        for command in (SCORE, MIX, EXPORT, MEASURE, REPORT):
            assert main([*command.split(), "--work", "w"]) == 0, command
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.parametrize("kind", MARKERS)
@pytest.mark.parametrize("how", ["directory", *HOWS])
def test_every_reader_ends_with_0_or_one_line_and_2(
    how: str, kind: str, here: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, _ = MARKERS[kind]
    for command in READERS:
        if (here / name).is_dir():
            (here / name).rmdir()
        shutil.copy2(made / name, here / name)
        damage(here / name, how)
        capsys.readouterr()
        code = main([*command.split(), "--work", "w"])
        told = [x for x in capsys.readouterr().err.splitlines() if x.startswith("capmix: ")]
        assert (code, len(told)) in ((0, 0), (2, 1)), (command, told)
        if how == "directory" and code == 2:
            assert Path(name).stem in told[0]


@pytest.mark.parametrize("kind", [kind for kind in MARKERS if kind != "export"])
@pytest.mark.parametrize("how", HOWS)
def test_the_stage_recomputes_the_part(how: str, kind: str, here: Path) -> None:
    name, command = MARKERS[kind]
    before = (here / name).read_bytes()
    damage(here / name, how)
    assert main([*command.split(), "--work", "w"]) == 0
    assert marker_digest((here / name).read_bytes()) == marker_digest(before)


@pytest.mark.parametrize("how", BROKEN)
def test_a_reader_names_folder_and_shard(
    how: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(here / MARKERS["captions"][0], how)
    capsys.readouterr()
    assert main(["mix", "--work", "w", "--recipe", "synthetic", "--synthetic", "a"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "captions/a: the marker of shard 00000 is damaged" in line
    assert main(["status", "--work", "w"]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("captions/a"))
    assert row.split()[1:3] == ["1", "1"]


def as_before(data: bytes) -> bytes:
    """Return a marker in the old format, without digests."""
    value = json.loads(data)
    del value["check"]
    files = {name: about["bytes"] for name, about in value["files"].items()}
    return json.dumps(value | {"format": 1, "files": files}).encode()


@pytest.mark.parametrize("kind", [kind for kind in MARKERS if kind != "export"])
def test_a_marker_with_invalid_values_is_none(kind: str, here: Path) -> None:
    path = here / MARKERS[kind][0]
    top, _, name = MARKERS[kind][0].partition("markers/")
    store = Store("w") if top == "w/." else Store("out", "_markers")
    part, data = name.removesuffix(".json"), path.read_bytes()
    assert store.read_marker(part) is not None
    for what, changed in changed_values(data):
        path.write_bytes(changed)
        assert store.read_marker(part) is None, what
    optional = ("extra", "files", "provenance", "format", "upgraded")
    for what, changed in changed_values(as_before(data)):
        path.write_bytes(changed)
        key = what.removeprefix("without ").split(" ")[0]
        is_fine = what.startswith("without ") and key in optional
        is_fine |= key in ("config", "extra", "provenance") and "= {" in what
        is_fine |= what in ("inputs = {}", "inputs = {'x': 'y'}", "files = {}", "columns = []")
        assert (store.read_marker(part) is not None) == is_fine, what
    for how in FORMS[1:]:
        path.write_bytes(data)
        damage(path, how)
        assert store.read_marker(part) is None, how
        assert len(store.fingerprint(part)) == 32
