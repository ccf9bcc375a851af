"""Connections of `capmix view`, bounded in number and time.

Import this module only where the server runs, because it requires uvicorn.
"""

import asyncio
import logging
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

CONNECTIONS = 64  # a browser opens up to 6 per server
WAITING = 16  # listen backlog; asyncio accepts this many connections before handling any
REQUEST_SECONDS = 10.0  # time to receive a complete request
STOP_SECONDS = 3


class BoundedConnection(H11Protocol):
    """A connection that is closed if its request does not arrive within REQUEST_SECONDS.

    If there are more than CONNECTIONS, the oldest is closed, idle ones before those being answered.
    A client that opens many idle connections thus cannot lock out others.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.opened = self.loop.time()
        self._limit: asyncio.TimerHandle | None = None
        self._watch()
        if len(self.connections) > CONNECTIONS:
            others = [one for one in self.connections if isinstance(one, BoundedConnection)]
            min(others, key=lambda one: (one.is_answering, one.opened)).end()

    @property
    def is_answering(self) -> bool:
        """Whether a response is pending or incomplete."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close the connection immediately."""
        self.connections.discard(self)
        self.transport.abort()

    def _watch(self) -> None:
        if self.is_answering:
            self._forget()
        elif self._limit is None:
            self._limit = self.loop.call_later(REQUEST_SECONDS, self.end)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class _Faults:
    """Exception handler of the event loop that logs each distinct error once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        line = f"{context['message']}: {error}" if error else str(context["message"])
        if line not in self._seen and len(self._seen) < CONNECTIONS:
            self._seen.add(line)
            log.warning("view: %s", line)


def run_server(app: Any, listener: Any) -> None:
    """Serve requests on a listening socket until stopped."""
    config = Config(
        app,
        http=BoundedConnection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        backlog=WAITING,
        log_level="error",  # do not log invalid HTTP requests
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(_Faults())
        await Server(config).serve([listener])

    asyncio.run(run())
