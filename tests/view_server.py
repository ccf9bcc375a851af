"""`capmix view` as a process, for tests that ask it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VIEW = [sys.executable, "-m", "capmix", "view", "--author", "ann", "--work"]


@contextmanager
def serving(work: str, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address that it prints, and the process, which ends with the block."""
    server = subprocess.Popen([*VIEW, work, *options], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip(), server
    finally:
        server.terminate()
        server.wait(20)
        server.stdout.close()
