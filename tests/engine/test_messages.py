"""Progress is shown on a terminal and in a notebook, and nowhere else."""

import io
import sys

import pytest

from capmix.engine import messages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal(), True), (io.StringIO(), False)])
def test_a_bar_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with messages.progress("caption blip2", "image", 10, done=4) as bar:
        bar.update(3)
        bar.refresh()
    assert ("caption blip2" in stream.getvalue()) is shown
    assert not shown or "7/10" in stream.getvalue()


def test_in_a_notebook_standard_error_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bar:
        disable: object = None

        def __init__(self, *_: object, disable: object, **__: object) -> None:
            self.disable = disable

    Bar.__module__ = "tqdm.notebook"
    monkeypatch.setattr(messages, "tqdm", Bar)
    assert messages.progress("x", "image").disable is False
