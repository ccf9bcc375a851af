"""`capmix view` with many idle connections."""

import contextlib
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from samples import write_pool

from capmix.cli.signals import RESUME
from capmix.workspace import open_workspace

pytest.importorskip("uvicorn")

FILES = 160  # open files allowed for the server
SECONDS = 2.0
START = (
    "import sys\n"
    "from capmix.view import connections\n"
    f"connections.REQUEST_SECONDS = {SECONDS}\n"
    "from capmix.cli.main import main\n"
    "sys.exit(main(['view', '--work', sys.argv[1]]))\n"
)


@contextlib.contextmanager
def serving(folder: Path, *command: str) -> Iterator[str]:
    """Yield the URL that `capmix view` prints; its standard error is written to folder/err."""
    work = open_workspace(str(write_pool(folder / "pool", 1, 2)), str(folder / "work"))
    work.index()

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))

    with (folder / "err").open("wb") as err:
        server = subprocess.Popen(
            [sys.executable, *command, str(folder / "work")],
            stdout=subprocess.PIPE, stderr=err, text=True, preexec_fn=few_files,
        )  # fmt: skip
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
            server.wait(20)
            server.stdout.close()


def logged(folder: Path) -> list[str]:
    """Return the lines of its standard error except the last, which reports the interrupt."""
    lines = (folder / "err").read_text().strip().splitlines()
    return [line for line in lines if line != RESUME]


def connected(address: str, number: int, said: bytes) -> list[socket.socket]:
    port = int(re.findall(r":(\d+)/", address)[0])
    found = []
    for _ in range(number):
        found.append(socket.create_connection(("127.0.0.1", port), 20))
        found[-1].sendall(said)
    return found


@pytest.mark.slow
def test_200_that_say_nothing_shut_nobody_out_and_fill_no_log(tmp_path: Path) -> None:
    with serving(tmp_path, "-m", "capmix", "view", "--work") as address:
        silent = connected(address, 100, b"") + connected(address, 100, b"GET / HTTP/1.1\r\nHo")
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200
        for one in silent:
            one.close()
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.status == 200
    assert logged(tmp_path) == []


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_a_request_that_does_not_come_in_ends_its_connection(tmp_path: Path, said: bytes) -> None:
    with serving(tmp_path, "-c", START) as address:
        started = time.monotonic()
        (silent,) = connected(address, 1, said)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(100):  # sending a byte now and then is not enough
                silent.sendall(said[-1:])
                silent.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    if silent.recv(1) == b"":
                        break
        assert SECONDS - 0.5 < time.monotonic() - started < SECONDS + 10
        silent.close()
    assert logged(tmp_path) == []


def test_what_is_no_request_is_no_line_of_the_log(tmp_path: Path) -> None:
    with serving(tmp_path, "-m", "capmix", "view", "--work") as address:
        for one in connected(address, 20, b"\x00\x01\r\n\r\n"):
            with contextlib.suppress(ConnectionResetError):
                one.recv(100)
            one.close()
    assert logged(tmp_path) == []
