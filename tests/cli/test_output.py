"""Untrusted text cannot control the terminal, in any kind of output."""

import logging

import pytest

from capmix.cli import main as cli
from capmix.cli.output import show
from capmix.engine import messages
from capmix.errors import UserError
from capmix.settings.printable import printable
from capmix.settings.tables import table_lines

HOSTILE = "\x1b]0;owned\x07 \x1b[2J\r\x9b31m \u202e half \udc80 ok ✓ é 図"
SHOWN = r"\x1b]0;owned\x07 \x1b[2J\r\x9b31m \u202e half \udc80 ok ✓ é 図"


def test_what_does_not_print_is_written_out() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_lines_of_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    show([HOSTILE, "two\nin one"])
    assert capsys.readouterr().out == f"{SHOWN}\ntwo\\nin one\n"


def test_messages_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with messages.shown():
        logging.getLogger("capmix.x").warning("shard %s:\n  details", HOSTILE)
    assert capsys.readouterr().err == f"shard {SHOWN}:\n  details\n"


def test_the_line_of_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UserError(f"server: {HOSTILE}\nsecond line")

    monkeypatch.setattr(cli, "make_app", lambda: lambda *_, **__: fail())
    assert cli.main(["status"]) == 2
    assert capsys.readouterr().err == f"capmix: server: {SHOWN}\\nsecond line\n"


def test_cells_keep_their_columns() -> None:
    assert table_lines(["a", "b"], [["x\ny", "1"], ["\x1b[2J", "22"]], "lr") == [
        "a          b",
        r"x\ny       1",
        r"\x1b[2J   22",
    ]
