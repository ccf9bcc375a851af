"""Closed streams, closed pipes, full disks: a lost result is an error, a lost log is not."""

import subprocess
import sys
from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli.main import main

CAPMIX = f"{sys.executable} -m capmix"
NO_SPACE = "capmix: cannot write to standard output: No space left on device."
CLOSED = "capmix: cannot write to standard output: Bad file descriptor."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 1,500 samples, and the work directory `w` in which none has a caption."""
    folder = tmp_path_factory.mktemp("streams")
    pool = write_pool(folder / "pool", 1, 1500)
    caption = ["caption", str(pool), "--work", str(folder / "w"), "--source", "a"]
    assert (
        main([*caption, "--model", "field:missing"]) == 2
    )  # all samples are dropped; the part is kept
    return folder


def shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Run bash in `folder`, with the function `capmix`; return exit code, output and errors."""
    script = f'set -o pipefail; capmix() {{ {CAPMIX} "$@"; }}; {command}'
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["status --work w", "failures --work w", "--help", "recipes"])
@pytest.mark.parametrize(("where", "line"), [(">/dev/full", NO_SPACE), (">&-", CLOSED)])
def test_a_result_that_cannot_be_written_is_an_error(
    command: str, where: str, line: str, folder: Path
) -> None:
    code, _, err = shell(f"capmix {command} {where}", folder)
    errors = [one for one in err.splitlines() if one.startswith("capmix:")]
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(line)
    assert "Traceback" not in err
    assert "Exception ignored" not in err


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_log_that_is_lost_stops_nothing(where: str, folder: Path, tmp_path: Path) -> None:
    mix = f"capmix mix {folder / 'pool'} --work {tmp_path / 'w'} --recipe raw {where}"
    code, out, _ = shell(mix, tmp_path)
    assert (code, out.splitlines()[0]) == (
        0,
        "raw: 1,500 rows kept of 1,500 samples, 0.0% synthetic",
    )
    assert "index" not in out
    assert len(out.splitlines()) == 2
    for part in ("samples/00000.parquet", "subsets/raw.parquet"):
        assert (tmp_path / "w" / part).read_bytes()[-4:] == b"PAR1"


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", "2> >(true)", ">&- 2>&-", "<&- >&- 2>&-"])
def test_an_error_that_nobody_reads_has_its_code_all_the_same(where: str, folder: Path) -> None:
    assert shell(f"capmix status --work nowhere {where}", folder)[:2] == (2, "")


def test_a_command_without_a_result_needs_no_output(folder: Path, tmp_path: Path) -> None:
    caption = f"caption {folder / 'pool'} --work {tmp_path / 'w'} --source a --model field:caption"
    assert shell(f"capmix {caption} <&- >&- 2>&-", tmp_path) == (0, "", "")


def test_a_reader_that_ends_is_141_without_a_message(folder: Path) -> None:
    code, out, errors = shell("capmix failures --work w | head -1", folder)
    assert (code, len(out.splitlines()), errors) == (141, 1, "")


def test_output_whose_reader_has_ended_before_is_141() -> None:
    process = subprocess.Popen([sys.executable, "-m", "capmix", "recipes"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 141


def test_characters_that_the_terminal_lacks_are_escaped(folder: Path) -> None:
    (folder / "wérk").symlink_to("w")
    code, out, _ = shell("PYTHONIOENCODING=ascii capmix status --work wérk", folder)
    assert code == 0
    assert "work w\\xe9rk" in out
