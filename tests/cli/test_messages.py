"""Output of --quiet, --verbose, --log-file and --progress in a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli.main import main
from capmix.cli.tokens import asks_for_json, behind_command

CAPTION = "caption pool --work W --source given --model field:caption"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("messages")
    write_pool(place / "pool", shards=2, samples=4)
    return place


def run(place: Path, command: str, work: str) -> tuple[int, str, str]:
    words = command.replace("W", work).split()
    done = subprocess.run(
        [sys.executable, "-m", "capmix", *words],
        cwd=place, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_json_is_all_that_is_on_standard_error(place: Path) -> None:
    code, out, err = run(place, f"{CAPTION} --progress json", "json")
    assert (code, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    ends = [line for line in lines if line["event"] == "end"]
    assert [(line["stage"], line["unit"], line["done"], line["total"]) for line in ends] == [
        ("index", "image", 8, 8), ("caption given", "image", 8, 8),
    ]  # fmt: skip
    assert {"ok": 8, "dropped": 0, "failed": 0, "eta_s": 0.0}.items() <= ends[1].items()
    assert ends[1]["rate"] > 0
    starts = [line["stage"] for line in lines if line["event"] == "start"]
    assert starts == ["index", "caption given"]
    texts = [line["text"] for line in lines if line["event"] == "message"]
    assert [text.partition(" in ")[0] for text in texts] == [
        "index: 8 images", "caption given: 8 images",
    ]  # fmt: skip


def test_an_error_is_a_line_of_json_too(place: Path) -> None:
    code, _, err = run(place, "--progress json export --work W --subset none --out x", "json")
    assert code == 2
    assert json.loads(err)["event"] == "error"
    assert json.loads(err)["text"].startswith("capmix: ")


@pytest.mark.parametrize(
    "command",
    [
        "recipes --progress json --bogus 3",
        "recipes --bogus 3 --progress=json",
        "--progress json --bogus recipes",
        "--progress json no-command",
        "--progress json recipes --quiet=maybe",
    ],
)
def test_an_error_before_the_command_starts_is_a_line_of_json(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "error"


@pytest.mark.parametrize(
    ("command", "is_json"),
    [
        ("a --progress json", True),
        ("--progress=json a", True),
        ("a --progress json --progress plain", False),
        ("a --progress", False),
        ("a -- --progress json", False),
        ("a json", False),
        ("", False),
    ],
)
def test_json_is_asked_for_by_its_option(command: str, is_json: bool) -> None:
    assert asks_for_json(command.split()) is is_json


def test_quiet_before_the_command_or_behind_it(place: Path) -> None:
    assert run(place, f"--quiet {CAPTION}", "quiet") == (0, "", "")
    code, out, err = run(place, "recipes --quiet", "quiet")
    assert (code, err) == (0, "")
    assert "raw-top" in out


def test_verbose_shows_each_part_and_a_log_file_has_all(place: Path) -> None:
    code, _, err = run(place, f"--verbose --log-file log {CAPTION}", "verbose")
    assert code == 0
    assert "caption given: shard 00000, 4 ok, 0 dropped, 0 failed in " in err
    lines = [line.split(" ", 3) for line in (place / "log").read_text("utf-8").splitlines()]
    assert [" ".join(line[3:]) for line in lines] == err.splitlines()
    assert {line[2] for line in lines} == {"DEBUG", "INFO"}


def test_a_log_file_is_appended_to_and_has_the_error(place: Path) -> None:
    (place / "log2").write_text("before\n", "utf-8")
    code, _, err = run(place, "status --work nowhere --quiet --log-file log2", "x")
    assert code == 2
    lines = (place / "log2").read_text("utf-8").splitlines()
    assert lines[0] == "before"
    assert lines[1].split(" ", 3)[2:] == ["ERROR", err.strip()]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("recipes --quiet --verbose", "--quiet and --verbose cannot be combined"),
        ("recipes --progress fast", 'Invalid value "fast" for --progress'),
        ("recipes --log-file none/log", "--log-file none/log: cannot be written: No such file"),
    ],
)
def test_what_is_wrong_is_one_line(place: Path, command: str, message: str) -> None:
    code, out, err = run(place, command, "x")
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "moved"),
    [
        ("--quiet caption p --source x", "caption --quiet p --source x"),
        ("--progress json --log-file=a import captions f", None),
        ("caption --quiet p", "caption --quiet p"),
        ("--quiet", ""),
        ("--verbose --help", "--help"),
    ],
)
def test_options_before_the_command_are_moved_behind_it(given: str, moved: str | None) -> None:
    moved = "import --progress json --log-file=a captions f" if moved is None else moved
    assert behind_command(given.split()) == moved.split()
