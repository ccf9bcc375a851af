"""Run `capmix view` as a process, for tests that send requests."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VIEW = [sys.executable, "-m", "capmix", "view", "--author", "ann", "--work"]


@contextmanager
def serving(work: str, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Yield the printed address and the process, which is terminated after the block."""
    server = subprocess.Popen([*VIEW, work, *options], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip(), server
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()
