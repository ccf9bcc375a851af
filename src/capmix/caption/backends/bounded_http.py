"""HTTP requests to untrusted servers, with limits on the size and the time of the response.

urllib3's timeout applies to each wait for the socket, so a server that sends a byte now and then,
or endless `100 Continue`, can block a request forever. Here one deadline covers connecting to all
addresses of the host, TLS, the request and the complete response. Only name resolution is not
covered: the limits of the system's resolver apply.
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
SHORTEST_WAIT = 0.001  # seconds; a timeout of 0 would make the socket non-blocking


class NoAnswerError(Exception):
    """The server is unreachable, closed the connection or timed out; a retry may succeed."""


class UnusableAnswerError(Exception):
    """The response exceeds the limits or is not usable; a retry would not help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's response. `retry_after` is the Retry-After header, or empty."""

    status: int
    data: bytes
    retry_after: str


class BoundedClient:
    """An HTTP client with up to `connections` connections, for use by as many threads.

    `seconds` limits the time of a request, from its start to the last byte of the response.
    """

    def __init__(self, seconds: float, connections: int):
        self._seconds = seconds
        self._pool = PoolManager(maxsize=connections, block=True, retries=False)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def request(self, method: str, url: str, headers: dict[str, str], body: Any = None) -> Answer:
        """Send a request with `body` as JSON; return the response. Redirects are not followed.

        Raises NoAnswerError, and UnusableAnswerError for a response that is larger than
        MAX_ANSWER_BYTES, compressed (not requested, and could decompress to any size) or not final
        (1xx).
        """
        until = time.monotonic() + self._seconds
        try:
            return self._answer(method, url, headers, body)
        except HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
            if time.monotonic() >= until:
                problem = f"no complete response within {self._seconds:g} s (--timeout)"
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
            response.close()  # otherwise the next request would read the rest of this response
            raise
        finally:
            response.release_conn()
        return Answer(response.status, data, response.headers.get("Retry-After", ""))


def _body(response: BaseHTTPResponse) -> bytes:
    """Read the complete body. Raises urllib3's errors and UnusableAnswerError."""
    if response.status < 200:
        raise UnusableAnswerError(f"status {response.status} without a final response")
    packed = response.headers.get("Content-Encoding", "").strip()
    if packed.lower() not in ("", "identity"):
        raise UnusableAnswerError(
            f"the response is compressed ({packed[:20]!r}); disable compression on the server"
        )
    data = bytearray()
    while more := response.read(MAX_ANSWER_BYTES + 1 - len(data)):
        data += more
    if len(data) > MAX_ANSWER_BYTES:
        raise UnusableAnswerError(f"the response is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(data)


class _Reader(io.RawIOBase):
    """A reader of a socket with a deadline on the monotonic clock."""

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
    """A response that is read, including status line and 1xx, within its socket's timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_Reader(sock, time.monotonic() + (sock.gettimeout() or 0)))


class _Deadlined(HTTPConnection):
    """A connection whose `timeout` counts from the moment it is set.

    urllib3 sets it to the full timeout when a request starts, and to the remaining time after the
    request was sent.
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
    """Return the seconds until `until` (monotonic clock). Raises TimeoutError if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left
