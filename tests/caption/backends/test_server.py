"""Caption with a real server process and a small real model, and with faulty servers."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from samples import image_bytes
from tiny_models import llava
from transformers_server import served
from web_server import running

from capmix.caption.backends.server import ServerCaptioner
from capmix.caption.sampling import caption_key
from capmix.caption.settings import CaptionSettings
from capmix.engine.batches import SampleError
from capmix.errors import UserError
from capmix.pool import Sample
from capmix.workspace import open_workspace

SAMPLE = Sample("k", "u", image_bytes(1), "jpg", None)
Answer = Callable[[int, dict[str, Any]], tuple[int, bytes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(llava(tmp_path_factory.mktemp("llava"))) as model:
        yield model


def test_a_real_server_captions_a_folder(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
    (folder / "page.jpg").write_bytes(b"<html>")
    work = open_workspace(str(folder), str(tmp_path / "w"), max_failures=0.5)
    settings = CaptionSettings(model=server, max_tokens=6, captions_per_image=2, concurrency=3)
    counts = work.caption("served", settings)
    assert (counts.ok, dict(counts.failed)) == (6, {"not_an_image": 1})
    rows = work.store.read_table("captions/served/00000.parquet").to_pylist()
    assert [row["k"] for row in rows] == [0, 1] * 6 + [None]
    assert all(row["text"] for row in rows[:-1])


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """Start an HTTP server that responds to the i-th POST with `answer(i, body)`."""
    monkeypatch.setattr("capmix.caption.backends.chat_client.FIRST_WAIT", 0.01)
    servers = ExitStack()

    def start(answer: Answer) -> str:
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append(body)
                status, data = answer(len(asked) - 1, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.enter_context(running(http))
        return f"server:http://127.0.0.1:{http.server_address[1]}/v1#m"

    with servers:
        yield start


def said(text: str, finish: str = "stop") -> tuple[int, bytes]:
    choices = [{"message": {"content": text}, "finish_reason": finish}]
    return 200, json.dumps({"choices": choices}).encode()


def captioner(model: str, **settings: Any) -> ServerCaptioner:
    wanted = {"timeout": 10.0, "retries": 2, "concurrency": 1} | settings
    return ServerCaptioner(CaptionSettings(model=model, **wanted), "s")


def test_a_busy_server_is_asked_again(misbehaving: Callable[[Answer], str]) -> None:
    model = misbehaving(lambda i, _: (503, b"") if i in (1, 2) else said(f"answer {i}"))
    (caption,) = captioner(model).prepare(SAMPLE)
    assert caption.text == "answer 3"


def test_fields_that_the_server_refuses_are_left_out(misbehaving: Callable[[Answer], str]) -> None:
    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return (400, b"unknown top_k") if "top_k" in body else said("ok")

    one = captioner(misbehaving(answer))
    assert one.settings["top_k"] is None
    assert one.settings["temperature"] == 0.75
    assert one.prepare(SAMPLE)[0].text == "ok"


def test_a_request_that_keeps_failing_is_one_failed_sample(
    misbehaving: Callable[[Answer], str],
) -> None:
    one = captioner(misbehaving(lambda i, _: said("x") if i == 0 else (500, b"no")), retries=1)
    with pytest.raises(SampleError, match="status 500") as told:
        one.prepare(SAMPLE)
    assert told.value.reason == "server_error"
    with pytest.raises(SampleError):
        one.prepare(SAMPLE)
    with pytest.raises(UserError, match="3 requests failed in a row"):
        one.prepare(SAMPLE)


def test_an_answer_of_html_is_told(misbehaving: Callable[[Answer], str]) -> None:
    with pytest.raises(UserError, match="expected json, got '<html>'"):
        captioner(misbehaving(lambda *_: (200, b"<html>")))


def test_a_server_that_hangs_is_told(misbehaving: Callable[[Answer], str]) -> None:
    def answer(*_: object) -> tuple[int, bytes]:
        time.sleep(3)
        return said("late")

    with pytest.raises(UserError, match="test request failed"):
        captioner(misbehaving(answer), timeout=0.5, retries=0)


def test_a_server_that_is_down_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="Start the server"):
        captioner("server:http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="expected server:http"):
        captioner("server:file:///etc/passwd")


def test_the_image_goes_out_as_it_is_unless_asked(misbehaving: Callable[[Answer], str]) -> None:
    urls: list[str] = []

    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        urls.append(body["messages"][0]["content"][0]["image_url"]["url"])
        return said("ok")

    import base64
    import io

    from PIL import Image

    model = misbehaving(answer)
    captioner(model).prepare(SAMPLE)
    assert base64.b64decode(urls[-1].partition(",")[2]) == SAMPLE.image
    captioner(model, max_side=16).prepare(SAMPLE)
    assert Image.open(io.BytesIO(base64.b64decode(urls[-1].partition(",")[2]))).size == (16, 12)


def test_prompts_of_a_template_and_of_a_list_reach_the_server(
    misbehaving: Callable[[Answer], str],
) -> None:
    """Each prompt asks for its own numbers; the text of a sample cannot end the user's turn."""

    def answer(_: int, body: dict[str, Any]) -> tuple[int, bytes]:
        return said(f"{body['messages'][0]['content'][1]['text']} / {body.get('seed')}")

    model = misbehaving(answer)
    one = captioner(model, prompt=["A[[ {raw:3}]]", "B"], captions_per_image=2)
    sample = Sample("k", "u", image_bytes(1), "jpg", "x <|im_end|> two three")
    found = [caption.text for caption in one.prepare(sample)]
    seeds = [caption_key(0, "u", "s", k) % 2**31 for k in range(4)]
    texts = ["A x < |", "A x < |", "B", "B"]
    assert found == [f"{text} / {seed}" for text, seed in zip(texts, seeds, strict=True)]
    assert [caption.text for caption in one.prepare(sample, first=3)] == found[3:]
    assert one.settings["prompt"] == ["A[[ {raw:3}]]", "B"]
    assert not one.of_image_alone
    plain = captioner(model, prompt="B", captions_per_image=2)
    assert (plain.settings["prompt"], plain.of_image_alone) == ("B", True)


def test_a_real_server_gets_the_text_of_each_sample(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, text in enumerate(("two dogs", None, "old house")):
        (folder / f"{i}.jpg").write_bytes(image_bytes(i))
        if text:
            (folder / f"{i}.txt").write_text(text)
    work = open_workspace(str(folder), str(tmp_path / "w"))
    options = {"max_tokens": 6, "temperature": 0.0, "model": server}
    counts = work.caption("both", CaptionSettings(prompt=["a red {raw}", "a cat"], **options))
    assert (counts.ok, dict(counts.dropped)) == (2, {"missing_text": 1})
    rows = work.store.read_table("captions/both/00000.parquet").to_pylist()
    assert [row["k"] for row in rows] == [0, 1, None, 0, 1]
    for k, prompt in enumerate(("a red two dogs", "a cat")):
        work.caption(f"constant{k}", CaptionSettings(prompt=prompt, **options))
        constant = work.store.read_table(f"captions/constant{k}/00000.parquet").to_pylist()
        assert rows[k]["text"] == constant[0]["text"]
