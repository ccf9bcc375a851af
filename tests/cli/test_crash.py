"""Internal errors: one line, exit code 70, and a file with the traceback."""

from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli import inspect
from capmix.cli.main import main
from capmix.errors import INTERNAL_ERROR

ERRORS = [
    (KeyError("x"), "KeyError: 'x'"),
    (RecursionError("deep\nlines"), "RecursionError: deep lines"),
    (MemoryError(), "MemoryError. "),
    (SystemExit(1), "SystemExit: 1"),
    (AssertionError("s3://user:secret@b"), "AssertionError: "),
]


@pytest.mark.parametrize(("error", "shown"), ERRORS, ids=lambda one: type(one).__name__)
def test_an_unexpected_error_is_one_line_and_70(
    error: BaseException,
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash() -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(inspect, "doctor", crash)
    assert main(["doctor"]) == INTERNAL_ERROR == 70
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.glob("capmix-*-error.log")
    assert line.startswith("capmix: internal error in test_crash.py:")
    assert shown in line
    assert str(log) in line
    assert log.read_text().startswith("Traceback (most recent call last):")
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("form", ["--work w", "--work=w", ""])
def test_the_traceback_is_in_the_work_directory(
    form: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["mix", str(write_pool(tmp_path / "p", 1, 1)), "--work=w", "--recipe=raw"]) == 0
    monkeypatch.setattr("capmix.inspect.status.status", lambda *_: [][0])
    if not form:
        monkeypatch.setenv("CAPMIX_WORK", str(tmp_path / "w"))
    capsys.readouterr()
    assert main(["status", *form.split()]) == 70
    line = capsys.readouterr().err
    assert "IndexError" in line
    assert "w/error.log; please report it" in line
    assert "IndexError" in (tmp_path / "w/error.log").read_text()


def test_help_and_version_are_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["--version"]) == main(["mix", "--help"]) == main([]) == 0
    assert "70 an internal error," in " ".join(capsys.readouterr().out.split())
