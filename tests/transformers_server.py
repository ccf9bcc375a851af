"""A process of `transformers serve`, for tests of clients."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the model in a folder on this machine; yield it as a value of `--model`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "transformers"
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(120):
            try:
                urllib3.request("GET", f"http://127.0.0.1:{port}/health", retries=False)
                break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.5)
        yield f"server:http://127.0.0.1:{port}/v1#{folder}"
    finally:
        process.terminate()
        process.wait()
