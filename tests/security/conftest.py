"""Servers on loopback."""

import http.server
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hostile import Quiet
from s3_server import S3, s3_server
from web_server import running


@pytest.fixture
def serving() -> Iterator[Callable[[type[Quiet]], tuple[str, list[Any]]]]:
    """A function that starts a server, and returns its address and the list of its requests."""
    servers = ExitStack()

    def start(kind: type[Quiet]) -> tuple[str, list[Any]]:
        handler = type("Handler", (kind,), {"asked": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.enter_context(running(server))
        return f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]

    with servers:
        yield start


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server
