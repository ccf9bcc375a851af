"""`capmix` in a fork of a process that has imported torch and transformers, which takes seconds.

The docs have hundreds of commands. `capmix` on PATH is the client below: it hands its arguments,
environment, directory and standard streams to the server, whose fork runs the command as the
installed script would. CAPMIX_DOCS_PLAIN=1 in the environment of the tests runs the script itself.
"""

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAVY = (
    "torch", "torchvision", "transformers", "open_clip", "duckdb", "pandas", "pyarrow.parquet",
    "matplotlib.figure", "timm", "capmix.cli.stages", "capmix.cli.train", "capmix.cli.inspect",
    "capmix.cli.pipeline",
)  # fmt: skip
GRACE = 5.0  # seconds between SIGTERM and SIGKILL
VIEW_SECONDS = 6  # then `view`, which serves until it is stopped, gets its Ctrl-C

CLIENT = """\
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
about = {{"argv": sys.argv, "cwd": os.getcwd(), "env": dict(os.environ)}}
data = json.dumps(about).encode()
socket.send_fds(server, [len(data).to_bytes(8, "big")], [0, 1, 2])
server.sendall(data)
answers = server.makefile()
process = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(answers.readline() or 1))
"""


def write_client(path: Path, address: str) -> None:
    """The program `capmix`."""
    path.write_text(f"#!{sys.executable} -IS\n{CLIENT.format(address=address)}")
    path.chmod(0o755)


@contextlib.contextmanager
def fork_server(address: str, environment: dict[str, str]) -> Iterator[None]:
    """The server at a Unix socket, ready when the block begins."""
    process = subprocess.Popen(
        [sys.executable, __file__, address],
        env=environment,
        stdin=subprocess.PIPE,  # its end ends the server
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.terminate()
        process.wait()


def serve(address: str) -> None:
    for name in HEAVY:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing is left of those that end
    os.write(1, b"ready\n")
    while 0 not in select.select([listener, 0], [], [])[0]:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if _is_the_command(client):
                return run()
            os._exit(0)
        client.close()


def _is_the_command(client: socket.socket) -> bool:
    """True in a fork that is to run the command; its parent sends the exit code and then ends."""
    size, streams, *_ = socket.recv_fds(client, 8, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        data += client.recv(1 << 16)
    process = os.fork()
    if process == 0:
        client.close()
        _take(json.loads(data), streams)
        return True
    client.sendall(f"{process}\n".encode())
    ended = os.pidfd_open(process)
    ready, *_ = select.select([client, ended], [], [])
    if ended not in ready:  # the client is gone, as a block that took too long is
        os.kill(process, signal.SIGTERM)
        if not select.select([ended], [], [], GRACE)[0]:
            os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
    return False


def _take(about: dict[str, Any], streams: list[int]) -> None:
    """Become a process with these arguments, directory, environment and standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(about["env"])
    os.chdir(about["cwd"])
    sys.argv = about["argv"]
    places = about["env"].get("PYTHONPATH", "").split(os.pathsep)
    new = [os.path.abspath(one) for one in places if one and os.path.abspath(one) not in sys.path]
    sys.path[:1] = [os.path.dirname(sys.argv[0]), *new]


def run() -> None:
    """The command, as the installed script runs it; `view` is stopped after some seconds."""
    from capmix.cli import main

    if "view" in sys.argv[1:3]:
        import threading

        def stop() -> None:
            time.sleep(VIEW_SECONDS)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop, daemon=True).start()
        real = main.end_now
        main.end_now = lambda code: real(0 if code == main.STOPPED else code)
    main.entry()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].endswith(".socket"):
        serve(sys.argv[1])
    else:
        run()
