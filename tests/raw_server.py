"""A server that sends exactly the bytes of a test, valid or not."""

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

LENGTH = re.compile(rb"content-length: (\d+)", re.I)


@dataclass(frozen=True)
class Asked:
    """A request; `number` counts a server's requests from 0."""

    number: int
    line: str
    body: bytes


Reply = Callable[[socket.socket, Asked], None]


@contextmanager
def raw_server(reply: Reply, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the address, such as http://127.0.0.1:4711, of a server that calls `reply`.

    `reply` is called for each request, in one thread per connection; if it raises OSError, the
    connection is closed.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    count = iter(range(10**9))

    def serve(plain: socket.socket) -> None:
        with suppress(OSError, EOFError), plain, _wrapped(plain, tls) as client:
            while True:
                line, body = _request(client)
                reply(client, Asked(next(count), line, body))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _wrapped(plain: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return tls.wrap_socket(plain, server_side=True) if tls else plain


def _request(client: socket.socket) -> tuple[str, bytes]:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        data += _received(client)
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    found = LENGTH.search(head)
    parts = [body]
    missing = (int(found[1]) if found else 0) - len(body)
    while missing > 0:
        parts.append(_received(client))
        missing -= len(parts[-1])
    return head.split(b"\r\n")[0].decode(), b"".join(parts)


def _received(client: socket.socket) -> bytes:
    data = client.recv(1 << 20)
    if not data:
        raise EOFError
    return data


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return a complete response. `headers` are lines that each end in CRLF."""
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def said(text: object, finish: str = "stop") -> bytes:
    """Return a caption server's response with `text`."""
    choices = [{"message": {"content": text}, "finish_reason": finish}]
    return http(json.dumps({"choices": choices}).encode())
