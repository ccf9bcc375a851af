"""Servers of socketserver in a thread of the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer

POLL = 0.02  # seconds; with the default of 0.5, each `shutdown` waits so long


@contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Serve in a thread within the block, and close the server after it."""
    threading.Thread(target=server.serve_forever, args=(POLL,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
