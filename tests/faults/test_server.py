"""Transient failures of caption servers do not change the captions."""

import json
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from samples import write_pool
from web_server import running

from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError
from capmix.storage.marker import Counts
from capmix.workspace import open_workspace

Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


def good(handler: BaseHTTPRequestHandler, answer: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    handler.wfile.write(answer)


def status(code: int, headers: dict[str, str] | None = None) -> Fault:
    def fault(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(code)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def reset(handler: BaseHTTPRequestHandler, answer: bytes) -> None:
    """Reset the connection in the middle of the response."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    handler.wfile.write(answer[: len(answer) // 2])
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def half(handler: BaseHTTPRequestHandler, answer: bytes) -> None:
    """Close the connection after half of the announced bytes."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    handler.wfile.write(answer[: len(answer) // 2])
    handler.close_connection = True


def page(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    good(handler, b"<html><body>It works!</body></html>")


@contextmanager
def serving(faults: dict[int, Fault], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Run a server whose response depends only on the image; POST number i has `faults[i]`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            url = body["messages"][0]["content"][0]["image_url"]["url"]
            asked.append(url)
            choice = {"message": {"content": f"an image of {len(url)}"}, "finish_reason": "stop"}
            answer = json.dumps({"choices": [choice]}).encode()
            faults.get(len(asked) - 1, good)(self, answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server):
        yield f"127.0.0.1:{server.server_address[1]}"


def captioned(tmp_path: Path, name: str, faults: dict[int, Fault]) -> tuple[Counts, bytes]:
    """Caption two shards with sequential requests; return the counts and the bytes of the parts."""
    pool = tmp_path / "pool"
    if not pool.exists():
        write_pool(pool, shards=2, samples=5)
    with serving(faults) as address:
        work = open_workspace(str(pool), str(tmp_path / name), max_failures=1.0)
        settings = CaptionSettings(model=f"server:http://{address}/v1#m", concurrency=1)
        counts = work.caption("served", settings)
    parts = sorted((tmp_path / name / "captions/served").glob("*.parquet"))
    return counts, b"".join(part.read_bytes() for part in parts)


@pytest.mark.parametrize(
    "fault",
    [reset, half, status(429, {"Retry-After": "0"}), status(500), status(503)],
    ids=["reset", "half an answer", "429", "500", "503"],
)
def test_transient_failures_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr("capmix.caption.backends.chat_client.FIRST_WAIT", 0.01)
    whole = captioned(tmp_path, "whole", {})
    assert whole[0].ok == 10
    assert captioned(tmp_path, "disturbed", {1: fault, 4: fault, 5: fault}) == whole


def test_an_answer_that_is_a_web_page_is_one_failed_sample_and_a_retry_fixes_it(
    tmp_path: Path,
) -> None:
    whole = captioned(tmp_path, "whole", {})
    counts, _ = captioned(tmp_path, "w", {3: page})
    assert (counts.ok, dict(counts.failed)) == (9, {"bad_answer": 1})
    with serving({}) as address:
        work = open_workspace(
            str(tmp_path / "pool"),
            str(tmp_path / "w"),
            max_failures=1.0,
            force=True,
            retry_failed=True,
        )
        settings = CaptionSettings(model=f"server:http://{address}/v1#m", concurrency=1)
        counts = work.caption("served", settings)
    assert counts.ok == whole[0].ok


def endless(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """Send a response that would fill the memory."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**40))
    handler.end_headers()
    with suppress(OSError):
        while True:
            handler.wfile.write(bytes(2**20))


def empty(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    good(handler, b'{"choices": []}')


@pytest.mark.parametrize("fault", [endless, empty])
def test_a_useless_answer_is_one_failed_sample(tmp_path: Path, fault: Fault) -> None:
    counts, _ = captioned(tmp_path, "w", {3: fault})
    assert (counts.ok, dict(counts.failed)) == (9, {"bad_answer": 1})


@pytest.mark.parametrize("key", ["hush\nhush", "hush \u00e4"])
def test_a_key_that_cannot_be_sent_is_reported_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("CAPMIX_SERVER_KEY", key)
    with pytest.raises(UserError, match="printable ASCII") as told:
        captioned(tmp_path, "w", {})
    assert "hush" not in str(told.value)
    monkeypatch.setenv("CAPMIX_SERVER_KEY", "hush\n")  # a trailing newline, as in a file
    assert captioned(tmp_path, "w", {})[0].ok == 10


def test_a_key_that_the_server_repeats_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPMIX_SERVER_KEY", "hush-hush")

    def repeats(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        good(
            handler,
            json.dumps({"error": f"no such key {handler.headers['Authorization']}"}).encode(),
        )

    counts, _ = captioned(tmp_path, "w", {3: repeats})
    assert counts.failed == {"bad_answer": 1}
    monkeypatch.setenv("CAPMIX_SERVER_KEY", "image")  # a plain word, as used for local servers
    captioned(tmp_path, "other", {})
    texts = pq.read_table(tmp_path / "other/captions/served/00000.parquet")["text"].to_pylist()
    assert all(text.startswith("an image of ") for text in texts)
    monkeypatch.setenv("CAPMIX_SERVER_KEY", "hush-hush")
    table = pq.read_table(tmp_path / "w/captions/served/00000.parquet")
    assert "no such key Bearer ..." in str(table["detail"].to_pylist())
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"hush-hush" in p.read_bytes()]


def test_a_refused_connection_and_an_invalid_certificate_are_one_clear_line(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "w"))
    nobody = CaptionSettings(model="server:http://127.0.0.1:9/v1#m", retries=0)
    with pytest.raises(UserError, match="127.0.0.1:9.*refused"):
        work.caption("served", nobody)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving({}, context) as address:
        settings = CaptionSettings(model=f"server:https://{address}/v1#m", retries=0)
        with pytest.raises(UserError, match="CERTIFICATE_VERIFY_FAILED"):
            work.caption("served", settings)
    assert work.store.parts("captions") == []


def test_a_password_in_the_address_is_refused(tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "pool")), str(tmp_path / "w"))
    settings = CaptionSettings(model="server:http://me:hush@127.0.0.1:9/v1#m")
    with pytest.raises(UserError, match="CAPMIX_SERVER_KEY") as told:
        work.caption("served", settings)
    assert "hush" not in str(told.value)
