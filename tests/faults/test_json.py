"""A damaged JSON file causes one line on standard error and exit code 2, never a traceback."""

import shutil
from pathlib import Path

import pytest
from damage import FORMS, changed_values, damage
from samples import write_pool

from capmix.cli.main import main
from capmix.engine.others import announced
from capmix.errors import UserError
from capmix.evaluation.results_file import ResultsFile
from capmix.storage import store
from capmix.storage.filesystem import open_regular
from capmix.storage.store import Store
from capmix.training.launch import TrainingData
from capmix.training.run import RunFolder
from capmix.training.scales import TrainSettings
from capmix.training.train import about_run, read_run
from capmix.workspace import Run, open_workspace

COMMANDS = (
    "status",
    "mix --recipe raw",
    "measure --topics 0",
    "report",
    "export --subset raw --out out",
    "caption --source a --model field:caption",
)
TRAIN = "--data pool --samples 8 --batch-size 4 --checkpoints 1 --device cpu"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pools (`pool` and `other`), a work directory `w` of `pool` with captions,
    measures, a subset and a report, an export `out`, and a finished training run `run`."""
    folder = tmp_path_factory.mktemp("json")
    write_pool(folder / "pool", 2, 3)
    write_pool(folder / "other", 2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (COMMANDS[-1], *COMMANDS[:-1]):
            name, *options = command.split()
            assert main([name, "pool", "--work", "w", *options]) == 0, command
        settings = TrainSettings(samples=8, batch_size=4, checkpoints=1, device="cpu")
        about = about_run(settings, TrainingData(["pool"]).source(settings))
        run = RunFolder(folder / "run")
        with run.claimed(about):
            run.note_counts(0, 8, 0)
            run.finish(about)
            run.checkpoint.parent.mkdir()
            run.checkpoint.touch()
        assert main(["train", "--out", "run", *TRAIN.split()]) == 0
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` as the current directory. Its pool.json refers to the original pool."""
    shutil.copytree(made, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    return tmp_path / "x"


def told(command: str, code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, check its exit code, and return its error line from standard error."""
    capsys.readouterr()
    assert main(command.split()) == code, command
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("capmix: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("how", FORMS)
def test_a_damaged_pool_json_is_refused_and_kept(
    how: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty pool.json must not bind the work directory to a different pool."""
    file = here / "w/pool.json"
    damage(file, how)
    before = None if how == "directory" else file.read_bytes()
    for command in COMMANDS:
        name, *options = command.split()
        for pool in ("", "pool", "other"):
            line = told(" ".join([name, pool, "--work w", *options]), 2, capsys)
            assert "work directory w: pool.json, which records its pool, is damaged (" in line
            assert "`capmix status POOL --work w`" in line
    assert before == (None if how == "directory" else file.read_bytes())
    assert main(["failures", "--work", "w"]) == 0  # needs no pool


def test_a_pool_json_of_other_values_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "w/pool.json"
    for what, data in changed_values(file.read_bytes()):
        file.write_bytes(data)
        is_text = "'" in what and "{" not in what
        line = told("status other --work w", 2, capsys)
        assert ("belongs to the pool x" if is_text else "is damaged") in line, what


def test_the_fix_in_the_message_repairs_it(here: Path) -> None:
    (here / "w/pool.json").write_bytes(b"")
    (here / "w/pool.json").unlink()
    assert main(["status", "pool", "--work", "w"]) == 0
    assert open_workspace(work="w").pool.location == str(here / "pool")


def test_a_damaged_note_of_another_run_stops_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, note = Store("w"), here / "w/running/note"
    store.write_json("running/note", {"host": "elsewhere", "process": 1})
    data = note.read_bytes()
    for how in FORMS:
        damage(note, how)
        with announced(store) as others:
            assert len(others) == (how != "directory"), how
            assert all("unknown process: running/note is damaged, " in one for one in others)
        if how == "directory":
            note.rmdir()
        note.parent.mkdir(exist_ok=True)
        note.write_bytes(data)
    for what, changed in changed_values(data):
        note.write_bytes(changed)
        with announced(store) as others:
            assert len(others) == 1, what
            assert ("is damaged" in others[0]) != (what == "host = 'x'"), what
    assert main(["caption", "--work", "w", "--source", "b", "--model", "field:caption"]) == 0
    assert "another capmix process is using w (unknown process: running/note is damaged" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["run.json", "counts.json"])
@pytest.mark.parametrize("how", FORMS)
def test_a_damaged_run_is_not_resumed(
    how: str, name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(here / "run" / name, how)
    if how == "object":  # valid JSON, but of a different run or without epochs
        code = main(["train", "--out", "run", *TRAIN.split()])
        assert code == (2 if name == "run.json" else 0)
        return
    line = told(f"train --out run {TRAIN}", 2, capsys)
    assert f"{name} is damaged (" in line
    assert str(here / "run") in line
    if name == "run.json":
        assert "run.json is damaged" in told("eval run --evalsets embedded", 2, capsys)


def test_values_of_other_types_in_a_run_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about, counts = here / "run/run.json", here / "run/counts.json"
    whole = about.read_bytes()
    for what, data in changed_values(whole):
        about.write_bytes(data)
        if what.removeprefix("without ").split(" ")[0] not in ("model", "config", "settings"):
            continue
        if what in ("model = 'x'", "config = None") or what.startswith("config = {"):
            assert "contains a run with different" in told(f"train --out run {TRAIN}", 2, capsys)
            continue
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            read_run("run")
    about.write_bytes(whole)
    for what, data in changed_values(counts.read_bytes()):
        counts.write_bytes(data)
        if what != "without 0":
            line = told(f"train --out run {TRAIN}", 2, capsys)
            assert "counts.json is damaged (expected counts" in line, what


RESULT: dict[str, object] = {
    "key": "a",
    "dataset": "A",
    "metric": "acc1",
    "metrics": {"acc1": 0.5, "main_metric": 0.5},
    "data": "d",
}


def results(folder: Path) -> ResultsFile:
    return ResultsFile.of(folder, "eval_results", "f", "float32")


@pytest.mark.parametrize("how", [form for form in FORMS if form != "empty"])
def test_damaged_results_are_refused(how: str, tmp_path: Path) -> None:
    results(tmp_path).put(RESULT)
    damage(results(tmp_path).path, how)
    with pytest.raises(UserError, match=r"eval_results\.jsonl"):
        results(tmp_path)


def test_results_of_other_types_are_refused(tmp_path: Path) -> None:
    file = results(tmp_path)
    file.put(RESULT)
    data = file.path.read_bytes()
    for what, changed in changed_values(data):
        file.path.write_bytes(changed)
        is_text = what.endswith("= 'x'") and what != "metrics = 'x'"
        if is_text or what == "metric = None" or what.startswith("precision = "):
            assert len(results(tmp_path).lines) == (what != "fingerprint = 'x'"), what
            continue
        with pytest.raises(UserError, match=r"eval_results\.jsonl"):
            results(tmp_path)


def test_metrics_of_a_run_that_is_under_way(here: Path) -> None:
    file = here / "run/metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [one["step"] for one in Run(here / "run").metrics()] == [1, 2]
    file.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: line 2 is damaged \(expected an object, not a list"
    ):
        Run(here / "run").metrics()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("w/pool.json", "status --work w"),
        ("run/run.json", f"train --out run {TRAIN}"),
        ("run/counts.json", f"train --out run {TRAIN}"),
    ],
)
def test_a_file_that_may_not_be_read_is_named(
    name: str,
    command: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulates chmod 000, which does not affect root."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    def refuse_opening(path: str) -> int:
        if path.endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return open_regular(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(store, "open_regular", refuse_opening)
    line = told(command, 2, capsys)
    assert "storage error: [Errno 13] Permission denied" in line
    assert name in line
