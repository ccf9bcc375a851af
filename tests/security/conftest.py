"""Servers on loopback."""

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hostile import Quiet
from s3_server import S3, s3_server


@pytest.fixture
def serving() -> Iterator[Callable[[type[Quiet]], tuple[str, list[Any]]]]:
    """A function that starts a server, and returns its address and the list of its requests."""
    servers = []

    def start(kind: type[Quiet]) -> tuple[str, list[Any]]:
        handler = type("Handler", (kind,), {"asked": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server
