"""Requests to servers that are not trusted: bounded in bytes and in time, to the last byte.

urllib3's time-out is one of each wait for the socket: a server that sends a byte now and then, or
`100 Continue` without end, is waited for for ever. Here one deadline holds for the connection to
each of the host's addresses, TLS, the request and the whole answer. Only the resolution of the
host's name is left to the bounds of the system's resolver.
"""

import io
import socket
import time
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.util.connection import create_connection

MAX_ANSWER_BYTES = 4 * 2**20
SHORTEST_WAIT = 0.001  # seconds; a time-out of 0 would mean a socket that never waits


class NoAnswerError(Exception):
    """The server is not there, broke off or was too slow: another try may succeed."""


class UnusableAnswerError(Exception):
    """The answer is over the bounds: another one would be the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer. `retry_after` is that header, or empty."""

    status: int
    data: bytes
    retry_after: str


class BoundedClient:
    """Sends requests over at most `connections` connections, for use by as many threads.

    `seconds` is the time of a request, from its start to the last byte of the answer.
    """

    def __init__(self, seconds: float, connections: int):
        self._seconds = seconds
        self._pool = PoolManager(maxsize=connections, block=True, retries=False)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def request(self, method: str, url: str, headers: dict[str, str], body: Any = None) -> Answer:
        """The answer to a request, whose `body` is sent as JSON. Redirects are not followed.

        Raises NoAnswerError, and UnusableAnswerError for an answer that is over MAX_ANSWER_BYTES,
        compressed (which is not asked for, and could unpack to any size) or not final (1xx).
        """
        until = time.monotonic() + self._seconds
        try:
            return self._answer(method, url, headers, body)
        except HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
            if time.monotonic() >= until:
                problem = f"no complete answer within {self._seconds:g} s (--timeout)"
            raise NoAnswerError(problem) from error

    def _answer(self, method: str, url: str, headers: dict[str, str], body: Any) -> Answer:
        response = self._pool.request(
            method,
            url,
            headers=headers,
            timeout=Timeout(total=self._seconds),
            redirect=False,
            preload_content=False,
            decode_content=False,
            **({} if body is None else {"json": body}),
        )
        try:
            data = _body(response)
        except BaseException:
            response.close()  # the next request would read the rest of this answer
            raise
        finally:
            response.release_conn()
        return Answer(response.status, data, response.headers.get("Retry-After", ""))


def _body(response: BaseHTTPResponse) -> bytes:
    """The bytes of an answer to the last one. Raises urllib3's errors and UnusableAnswerError."""
    if response.status < 200:
        raise UnusableAnswerError(f"status {response.status} without a final answer")
    packed = response.headers.get("Content-Encoding", "").strip()
    if packed.lower() not in ("", "identity"):
        raise UnusableAnswerError(f"a compressed answer ({packed[:20]!r}): turn that off")
    data = bytearray()
    while more := response.read(MAX_ANSWER_BYTES + 1 - len(data)):
        data += more
    if len(data) > MAX_ANSWER_BYTES:
        raise UnusableAnswerError(f"an answer of over {MAX_ANSWER_BYTES} bytes")
    return bytes(data)


class _Reader(io.RawIOBase):
    """What a socket receives until a moment of the monotonic clock."""

    def __init__(self, sock: socket.socket, until: float):
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._sock.settimeout(_left(self._until))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Response(HTTPResponse):
    """An answer that is read, status line and 1xx included, within the time that its socket has."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Reader(sock, time.monotonic() + (sock.gettimeout() or 0)))


class _Deadlined(HTTPConnection):
    """A connection whose `timeout` runs from the moment that it is set.

    urllib3 sets it to the whole time where a request starts, and to what is left when it was sent.
    """

    response_class = _Response
    _until = 0.0

    @property
    def timeout(self) -> float:
        return max(self._until - time.monotonic(), SHORTEST_WAIT)

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._until = time.monotonic() + (seconds or 0)

    def _new_conn(self) -> socket.socket:
        problem: OSError = OSError("the host has no address")
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            found, problem = [], error
        for *_, address in found:
            try:
                host, port = str(address[0]), int(address[1])
                sock = create_connection(
                    (host, port), _left(self._until), socket_options=self.socket_options
                )
                sock.settimeout(_left(self._until))  # for TLS
                return sock
            except OSError as error:
                problem = error
        raise NewConnectionError(self, f"cannot connect: {problem}") from problem

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        rest = memoryview(data)
        while rest:
            self.sock.settimeout(_left(self._until))
            rest = rest[self.sock.send(rest) :]


class _DeadlinedTls(_Deadlined, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Deadlined


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _DeadlinedTls


def _left(until: float) -> float:
    """Seconds until a moment of the monotonic clock. Raises TimeoutError where it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left
