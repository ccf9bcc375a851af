"""Caption servers that deliberately send slow, endless or invalid responses."""

import gzip
import io
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from raw_server import Asked, Reply, http, raw_server, said
from samples import image_bytes, write_pool

from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.pool import Sample
from capmix.workspace import open_workspace

SAMPLE = Sample("k", "u", image_bytes(1), "jpg", None)
OK = said("a picture")


def captioner(address: str, model: str = "#m", **settings: Any) -> ServerCaptioner:
    wanted = {"timeout": 5.0, "retries": 0, "concurrency": 1} | settings
    return ServerCaptioner(CaptionSettings(model=f"server:{address}/v1{model}", **wanted), "s")


def after_the_first(answer: bytes) -> Reply:
    """Answer the test request with the blank image correctly."""
    return lambda client, asked: client.sendall(answer if asked.number else OK)


@pytest.mark.parametrize("value", ["²", "٣", "-1", "1e9", "inf", "nan", "9" * 5000, "soon", "1 s"])
def test_a_retry_after_that_is_no_number_or_huge_is_waited_for_within_bounds(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr("capmix.caption.backends.chat_client.FIRST_WAIT", 0.01)
    monkeypatch.setattr("capmix.caption.backends.chat_client.LONGEST_WAIT", 0.05)

    def reply(client: socket.socket, asked: Asked) -> None:
        busy = b"HTTP/1.1 503 Busy\r\nRetry-After: %b\r\nContent-Length: 0\r\n\r\n"
        sent = value.encode("latin-1" if value == "²" else "utf-8")
        client.sendall(busy % sent if asked.number == 1 else OK)

    with raw_server(reply) as address:
        assert captioner(address, retries=1).prepare(SAMPLE)[0].text == "a picture"


@pytest.mark.parametrize("in_date", [False, True])
def test_a_retry_after_in_seconds_or_as_a_date_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, in_date: bool
) -> None:
    monkeypatch.setattr("capmix.caption.backends.chat_client.FIRST_WAIT", 0.01)

    def reply(client: socket.socket, asked: Asked) -> None:
        at = datetime.now(UTC) + timedelta(seconds=2)
        value = f"{at:%a, %d %b %Y %H:%M:%S} GMT" if in_date else "1"
        busy = http(b"", "429 Too Many Requests", f"Retry-After: {value}\r\n")
        client.sendall(busy if asked.number == 1 else OK)

    with raw_server(reply) as address:
        one = captioner(address, retries=1)
        began = time.monotonic()
        one.prepare(SAMPLE)
    assert 0.9 < time.monotonic() - began < 10


def drip(data: bytes, seconds: float = 0.1) -> Callable[[socket.socket], None]:
    def send(client: socket.socket) -> None:
        for i in range(len(data)):
            client.sendall(data[i : i + 1])
            time.sleep(seconds)

    return send


def forever(data: bytes) -> Callable[[socket.socket], None]:
    def send(client: socket.socket) -> None:
        while True:
            client.sendall(data)

    return send


def slow_body(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    drip(b" " * 1000)(client)


def slow_chunks(client: socket.socket) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(b"1\r\nx\r\n" * 200)(client)


SLOW = {
    "a byte of the headers now and then": drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100),
    "a byte of the body now and then": slow_body,
    "a byte of the chunks now and then": slow_chunks,
    "100 Continue now and then": drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 10),
    "100 Continue without end": forever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of 100 Continue without end": forever(b"HTTP/1.1 100 Continue\r\nX: y\r\n"),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("model", ["", "#m"], ids=["models", "captions"])
def test_one_deadline_holds_from_the_connection_to_the_last_byte(name: str, model: str) -> None:
    began = time.monotonic()
    with (
        raw_server(lambda client, _: SLOW[name](client)) as address,
        pytest.raises(UserError) as caught,
    ):
        captioner(address, model, timeout=0.3)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    if "without end" not in name:
        assert "no complete response within 0.3 s (--timeout)" in str(caught.value)


def test_a_server_that_reads_a_little_now_and_then_is_given_up() -> None:
    """The time to send a large request counts."""
    noise = image_bytes(1, kind="PNG")
    large = Sample("k", "u", noise + bytes(12 * 2**20), "png", None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            with suppress(OSError):
                client, _ = listener.accept()
                client.recv(1 << 16)
                client.sendall(OK)
                while True:
                    client.recv(1 << 16)
                    time.sleep(0.2)

        threading.Thread(target=serve, daemon=True).start()
        one = captioner(address, timeout=0.3)
        began = time.monotonic()
        with pytest.raises(SampleError, match="no complete response within 0.3 s"):
            one.prepare(large)
        assert time.monotonic() - began < 5


def test_the_addresses_of_a_host_share_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listeners with a full queue do not accept connections."""
    full = []
    for _ in range(8):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = socket.create_connection(listener.getsockname())
        full.append((listener, waiting))
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname()) for listener, _ in full
    ]
    real = socket.getaddrinfo

    def resolved(host: str, *args: Any, **kwargs: Any) -> Any:
        return found if host == "many.test" else real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    began = time.monotonic()
    with pytest.raises(UserError, match="no complete response within 0.5 s"):
        captioner("http://many.test:80", timeout=0.5)
    assert time.monotonic() - began < 3.5  # 8 addresses with a deadline each take 4 s
    for pair in full:
        for one in pair:
            one.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    """A certificate that the client trusts during the test."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        yield context


def test_a_server_with_tls_is_asked_over_one_connection(tls: ssl.SSLContext) -> None:
    clients = set()

    def reply(client: socket.socket, _: Asked) -> None:
        clients.add(client.getpeername())
        client.sendall(OK)

    with raw_server(reply, tls) as address:
        one = captioner(address)
        large = Sample("k", "u", image_bytes(1, kind="PNG") + bytes(2**22), "png", None)
        assert [one.prepare(image)[0].text for image in (SAMPLE, large)] == ["a picture"] * 2
    assert len(clients) == 1


@pytest.mark.parametrize("name", SLOW)
def test_the_deadline_holds_over_tls(tls: ssl.SSLContext, name: str) -> None:
    began = time.monotonic()
    with (
        raw_server(lambda client, _: SLOW[name](client), tls) as address,
        pytest.raises(UserError, match="test request failed"),
    ):
        captioner(address, timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_tls_handshake_that_does_not_come_ends_at_the_deadline() -> None:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match="no complete response within 0.3 s"):
            captioner(address, timeout=0.3)
    assert time.monotonic() - began < 5


MEMORY = """
import re, sys
from pathlib import Path
from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.errors import UserError

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before = peak()
try:
    ServerCaptioner(CaptionSettings(model=sys.argv[1], timeout=20, retries=0), "s")
except UserError as error:
    print(error)
print(peak() - before)
"""


def endless_models(client: socket.socket, _: Asked) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    with suppress(OSError):
        for _ in range(200):  # MiB
            client.sendall(b"[" * 2**20)
    client.close()


def packed_models(client: socket.socket, _: Asked) -> None:
    names = gzip.compress(b'{"data": [{"id": "' + b"m" * 100 * 2**20 + b'"}]}', 1)
    client.sendall(http(names, headers="Content-Encoding: gzip\r\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (endless_models, "larger than 4194304 bytes"),
        (packed_models, "the response is compressed ('gzip')"),
    ],
)
@pytest.mark.parametrize("model", ["", "#m"], ids=["models", "captions"])
def test_an_endless_or_packed_answer_takes_no_memory(
    reply: Reply, expected: str, model: str
) -> None:
    with raw_server(reply) as address:
        command = [sys.executable, "-c", MEMORY, f"server:{address}/v1{model}"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    message, megabytes = run.stdout.splitlines()
    assert expected in message
    assert float(megabytes) < 40


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[" * 10**5, "expected json"),
        (b"[]", "expected a list of models, got '\\[\\]'"),
        (b'{"data": [{"id": {"a": 1}}]}', "expected a list of models"),
        (b'{"data": [{"id": "a\\u001b[31m"}]}', "expected a list of models"),
        (b'{"data": []}', "serves none; append"),
        (
            json.dumps({"data": [{"id": f"m{i}"} for i in range(1000)]}).encode(),
            "m18, m19 and 980 more; append",
        ),
    ],
)
def test_a_list_of_models_that_is_none_is_one_line(data: bytes, expected: str) -> None:
    with (
        raw_server(lambda client, _: client.sendall(http(data))) as address,
        pytest.raises(UserError, match=expected) as caught,
    ):
        captioner(address, "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("status", ["103 Early Hints", "404 Not Found", "500 Error"])
def test_models_of_another_status_are_one_line(status: str) -> None:
    body = b"\x1b[31mno\nsuch page"
    with (
        raw_server(lambda client, _: client.sendall(http(body, status))) as address,
        pytest.raises(UserError, match=f"status {status[:3]}") as caught,
    ):
        captioner(address, "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("<think>Is it a cat?</think>\n\nA cat.", "A cat."),
        ("it may be a dog</think> A cat.", "A cat."),
        ("<THINK>a</THINK><think>b</think>A cat.", "A cat."),
    ],
)
def test_the_caption_follows_a_models_reasoning(text: str, caption: str) -> None:
    with raw_server(after_the_first(said(text))) as address:
        assert captioner(address).prepare(SAMPLE)[0].text == caption


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said(None, "length"), "empty_answer"),
        (said(" \n"), "empty_answer"),
        (said("<think>Is it a cat", "length"), "empty_answer"),
        (said("A cat. <think>Or is it"), "empty_answer"),
        (said("<think>Is it a cat?</think> "), "empty_answer"),
        (said([{"type": "text"}]), "bad_answer"),
        (said(0), "bad_answer"),
        (said("a" * 70_000), "bad_answer"),
        (http(b'{"choices": [{"message": null}]}'), "bad_answer"),
        (http(b'{"choices": {}}'), "bad_answer"),
        (http(b'{"choices": "none"}'), "bad_answer"),
        (http(b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}"), "bad_answer"),
        (http(b"{}"), "bad_answer"),
    ],
)
def test_an_answer_without_a_usable_text_is_a_failure(answer: bytes, reason: str) -> None:
    with raw_server(after_the_first(answer)) as address, pytest.raises(SampleError) as caught:
        captioner(address).prepare(SAMPLE)
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_failed_answer_is_a_recorded_row(tmp_path: Path) -> None:
    work = open_workspace(
        str(write_pool(tmp_path / "pool", 1, 3)), str(tmp_path / "w"), max_failures=1.0
    )
    with raw_server(after_the_first(said(None, "length"))) as address:
        settings = CaptionSettings(model=f"server:{address}/v1#m", retries=0)
        counts = work.caption("served", settings)
    assert (counts.ok, dict(counts.failed)) == (0, {"empty_answer": 3})
    rows = work.store.read_table("captions/served/00000.parquet").to_pylist()
    assert [row["text"] for row in rows] == [None] * 3
    assert "increase --max-tokens" in rows[0]["detail"]


IMAGES_AT_ONCE = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.settings import CaptionSettings
from capmix.cli.malloc import keep_freed_memory
from capmix.pool import Sample

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

keep_freed_memory()
model, threads, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
sample = Sample("k", "u", sys.stdin.buffer.read(), "png", None)
settings = CaptionSettings(model=model, concurrency=threads, max_side=side, retries=0)
one = ServerCaptioner(settings, "s")
before = peak()
with ThreadPoolExecutor(threads) as pool:
    assert len(list(pool.map(one.prepare, [sample] * threads))) == threads
print(peak() - before)
"""


def megabytes_at_once(image: bytes, threads: int, max_side: int = 0) -> float:
    """Growth of the peak memory in MB while each thread sends the image once."""

    def reply(client: socket.socket, asked: Asked) -> None:
        time.sleep(0.1)
        client.sendall(OK)

    with raw_server(reply) as address:
        model = f"server:{address}/v1#m"
        command = [sys.executable, "-c", IMAGES_AT_ONCE, model, str(threads), str(max_side)]
        run = subprocess.run(command, input=image, capture_output=True, check=True, timeout=100)
    return float(run.stdout)


def test_the_format_is_that_of_the_bytes_and_not_of_the_name() -> None:
    asked = []

    def reply(client: socket.socket, request: Asked) -> None:
        asked.append(request.body)
        client.sendall(OK)

    with raw_server(reply) as address:
        captioner(address).prepare(Sample("k", "u", image_bytes(1, kind="PNG"), "jpg", None))
        captioner(address).prepare(Sample("k", "u", image_bytes(1, kind="TIFF"), "tif", None))
    assert b"data:image/png;base64," in asked[-2]
    assert b"data:image/jpeg;base64," in asked[-1]  # some servers cannot read TIFF


def grey(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_images_that_are_passed_on_are_not_decoded() -> None:
    """16 images of 100 million pixels, each 500 MB decoded."""
    assert megabytes_at_once(grey(10_000), 16) < 60


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_of_downscaling_does_not_grow_with_the_threads() -> None:
    """50 million pixels take 250 MB; two exceed the limit."""
    image = grey(7_100)
    assert megabytes_at_once(image, 1, 512) < 350
    assert megabytes_at_once(image, 4, 512) < 350
