"""The connections of `capmix view`: bounded in number and in time, and quiet.

Imported where the server runs alone: it needs uvicorn.
"""

import asyncio
import logging
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

CONNECTIONS = 64  # a browser opens 6 to one server
WAITING = 16  # accepted at once: asyncio takes that many before it looks at any
REQUEST_SECONDS = 10.0  # for a whole request to come in
STOP_SECONDS = 3


class BoundedConnection(H11Protocol):
    """Ends where its request does not come in within REQUEST_SECONDS.

    Where there are more than CONNECTIONS, the oldest one ends, and one without a request before
    those that are being answered: who opens many and says nothing shuts nobody out.
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
        """Whether a request has come in that has no whole answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close the connection at once."""
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
    """Each kind of fault of the loop is one line, however often it comes."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        line = f"{context['message']}: {error}" if error else str(context["message"])
        if line not in self._seen and len(self._seen) < CONNECTIONS:
            self._seen.add(line)
            log.warning("view: %s", line)


def run_server(app: Any, listener: Any) -> None:
    """Answer at a listening socket until stopped."""
    config = Config(
        app,
        http=BoundedConnection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        backlog=WAITING,
        log_level="error",  # a request that is none of HTTP is no news
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(_Faults())
        await Server(config).serve([listener])

    asyncio.run(run())
