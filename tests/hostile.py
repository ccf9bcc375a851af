"""A pickle that runs, and a server that notes what it is asked."""

import http.server
import os
from pathlib import Path
from typing import Any


class Hostile:
    """A pickle that makes the directory `proof` where it is loaded."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


class Quiet(http.server.BaseHTTPRequestHandler):
    """Notes what it is asked, and says nothing on the terminal."""

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
