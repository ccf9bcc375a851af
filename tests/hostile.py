"""A pickle that runs code, and a server that records its requests."""

import http.server
import os
from pathlib import Path
from typing import Any


class Hostile:
    """Return a pickle that creates the directory `proof` when it is loaded."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


class Quiet(http.server.BaseHTTPRequestHandler):
    """Record requests, and print nothing."""

    asked: list[tuple[str, str, dict[str, str]]]

    def parse_request(self) -> bool:
        good = super().parse_request()
        if good:
            self.asked.append((self.command, self.path, dict(self.headers)))
        return good

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
