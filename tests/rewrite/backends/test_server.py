"""Rewrite with a real server process and a small real model, and with faulty servers."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from samples import write_pool
from tiny_text_models import chat
from transformers_server import served
from web_server import running

from capmix.caption.sampling import caption_key
from capmix.errors import UserError
from capmix.rewrite.backends.server import ServerRewriter
from capmix.rewrite.rewriter import TextRequest
from capmix.rewrite.settings import RewriteSettings
from capmix.workspace import open_workspace


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(chat(tmp_path_factory.mktemp("chat"))) as model:
        yield model


def test_a_real_server_rewrites_the_texts_of_a_pool(server: str, tmp_path: Path) -> None:
    work = open_workspace(str(write_pool(tmp_path / "p", 1, 4)), str(tmp_path / "w"))
    counts = work.rewrite(
        "served", model=server, prompt="a red {raw}", max_tokens=6, captions_per_image=2,
        temperature=1.0, concurrency=2,
    )  # fmt: skip
    assert counts.ok == 4
    rows = work.store.read_table("captions/served/00000.parquet").to_pylist()
    assert [row["k"] for row in rows] == [0, 1] * 4
    assert all(row["text"] for row in rows)


@pytest.fixture
def recorded() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers with the beginning of the message; it refuses "refuse"."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = body["messages"][0]["content"]
            asked.append(body)
            choice = {"message": {"content": f"<think>hm</think> {text}"}, "finish_reason": "stop"}
            data = json.dumps({"choices": [choice] * body.get("n", 1)}).encode()
            self.send_response(400 if "refuse" in text else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with ExitStack() as stack:
        stack.enter_context(running(http))
        yield f"server:http://127.0.0.1:{http.server_address[1]}/v1#m", asked


def test_equal_inputs_are_one_request_and_each_has_its_seed(
    recorded: tuple[str, list[dict[str, Any]]],
) -> None:
    model, asked = recorded
    one = ServerRewriter(RewriteSettings(model=model, prompt="{raw}", captions_per_image=3), "s")
    asked.clear()
    request = TextRequest("u", ("one", "one", "two"), "s")
    (found,) = one.rewrite([one.prepare(request)], [request])
    assert [text.text for text in found] == ["one", "one", "two"]
    assert [body["n"] for body in asked] == [2, 1]
    assert [body["seed"] for body in asked] == [caption_key(0, "u", "s", k) % 2**31 for k in (0, 2)]
    assert asked[0]["messages"] == [{"role": "user", "content": "one"}]


def test_the_length_of_inputs_without_a_prompt_is_a_setting_of_the_source(
    recorded: tuple[str, list[dict[str, Any]]],
) -> None:
    model, asked = recorded
    one = ServerRewriter(RewriteSettings(model=model, max_input_tokens=2), "s")
    one.prepare(TextRequest("u", ("a b c",), "s"))
    assert asked[-1]["messages"] == [{"role": "user", "content": "a b"}]
    assert one.settings["max_input_tokens"] == 2
    prompted = ServerRewriter(RewriteSettings(model=model, prompt="{raw}", max_input_tokens=2), "s")
    assert "max_input_tokens" not in prompted.settings


def test_a_refused_text_fails_alone(
    recorded: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    model, _ = recorded
    work = open_workspace(
        str(write_pool(tmp_path / "p", 1, 4)), str(tmp_path / "w"), max_failures=1.0
    )
    counts = work.rewrite("s", model=model, prompt=["{raw}"], where="raw_text != 'picture 3'")
    assert (counts.ok, counts.failed) == (3, {})
    counts = work.rewrite("t", model=model, prompt=["refuse {raw}"])
    assert counts.failed == {"refused": 4}


def test_an_unreachable_server_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="rewriter server:http://127.0.0.1:9/v1"):
        ServerRewriter(RewriteSettings(model="server:http://127.0.0.1:9/v1", retries=0), "s")
