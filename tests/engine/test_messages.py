"""Messages and progress are shown in the requested form: as text, as JSON, in a log file."""

import io
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from capmix.engine import messages, progress
from capmix.errors import UserError

log = logging.getLogger("capmix.tests")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Remove the handlers of a test after it."""
    with messages.shown():
        yield


def hide() -> None:
    logging.getLogger(messages.ROOT).handlers.clear()


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
@pytest.mark.parametrize("is_command", [False, True])
def test_a_bar_is_shown_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_command: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    stream.truncate(0)
    if not is_command:
        hide()
    with progress.progress("caption blip2", "image", 10, done=4) as bar:
        bar.update(3)
    shown = stream.getvalue()
    assert ("caption blip2" in shown) is stream.isatty()
    assert not stream.isatty() or "7 of 10 images" in shown


def test_in_a_notebook_standard_error_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        pass

    Bar.__module__ = "tqdm.notebook"
    hide()
    assert messages.progress_form() == "none"
    monkeypatch.setattr(messages, "tqdm", Bar)
    assert messages.progress_form() == "bar"


def test_a_terminal_without_a_size_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (0, 0))
    with progress.progress("mix", "shard", 4) as bar:
        bar.update(2)
    assert "mix:  50%" in stream.getvalue()


def test_quiet_shows_warnings_and_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    messages.change(messages.MessageForm(level=logging.WARNING))
    log.info("a summary")
    log.warning("a warning")
    assert capsys.readouterr().err == "a warning\n"
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert messages.progress_form() == "none"


def test_verbose_shows_debug_messages(capsys: pytest.CaptureFixture[str]) -> None:
    log.debug("hidden")
    messages.change(messages.MessageForm(level=logging.DEBUG))
    log.debug("shown")
    assert capsys.readouterr().err == "shown\n"


def test_json_lines_hold_messages_progress_and_the_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages.change(messages.MessageForm(progress="json"))
    log.warning("a\nwarning")
    with progress.progress("mix", "shard", 4) as bar:
        bar.update(4)
    assert messages.say_error("the end")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["message", "start", "end", "error"]
    assert lines[0] == {"event": "message", "level": "warning", "text": "a\nwarning"}
    assert (lines[2]["done"], lines[2]["total"], lines[2]["stage"]) == (4, 4, "mix")


def test_a_log_file_has_messages_with_their_time_and_plain_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.05)
    path = tmp_path / "log"
    messages.change(messages.MessageForm(logging.WARNING, log_file=str(path)))
    log.info("steers\x1b[2Jno terminal")
    with progress.progress("mix", "shard", 4) as bar:
        bar.update(1)
        bar._display._is_over.wait(0.2)
    messages.say_error("the end")
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].endswith(" INFO steers\\x1b[2Jno terminal")
    assert lines[1].endswith(" INFO mix: 1 of 4 shards (25%), 0.1 s elapsed")
    assert lines[-1].endswith(" ERROR the end")
    assert capsys.readouterr().err == ""


def test_a_log_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--log-file .*: cannot be written: Is a directory"):
        messages.change(messages.MessageForm(log_file=str(tmp_path)))


def test_plain_lines_are_rare_and_rarer_in_long_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = progress.plain_waits
    assert [waits(seconds) for seconds in (0, 30, 3600, 86400)] == [30, 30, 60, 300]
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.1)
    messages.change(messages.MessageForm(progress="plain"))
    started = time.monotonic()
    with progress.progress("mix", "shard", 4) as bar:
        bar._display._is_over.wait(0.35)
    most = (time.monotonic() - started) / 0.1
    assert 2 <= capsys.readouterr().err.count("mix: 0 of 4 shards (0%)") <= most


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.4, "59 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"),
     (260_000, "3 days 0 h")],
)  # fmt: skip
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
