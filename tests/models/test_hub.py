"""An unavailable model is a one-line error, with the reason, within seconds."""

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from samples import write_pool
from web_server import running

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.models import hub
from capmix.models.hub import check_hub, is_downloaded

# Statuses and error codes that huggingface.co returns, by the owner of a model.
ANSWERS = {
    "owner": (200, ""),
    "nobody": (401, ""),  # the Hub does not distinguish missing from private models
    "gone": (404, "RepoNotFound"),
    "gated": (401, "GatedRepo"),
    "plain": (404, ""),
    "refused": (403, ""),
    "bare": (404, "EntryNotFound"),
    "unsteady": (503, ""),
}


class Hub(BaseHTTPRequestHandler):
    """A server whose response depends on the owner in the path; `slow` gets a late one."""

    def do_HEAD(self) -> None:
        owner = self.path.split("/")[1]
        if owner == "slow":
            time.sleep(0.6)
        status, code = ANSWERS.get(owner, (200, ""))
        if "/resolve/v9/" in self.path:
            status, code = 404, "RevisionNotFound"
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", "0")):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing to stderr."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    one = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with running(one):
        yield f"http://127.0.0.1:{one.server_port}"


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the endpoint; huggingface_hub reads HF_ENDPOINT only when it is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def online(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Use the server above as the Hub, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to(server, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def download(cache: Path, name: str) -> None:
    folder = cache / f"models--{name.replace('/', '--')}/snapshots/0"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("nobody/x", None, "it: no such model, or it is private"),
        ("gone/x", None, "it: no such model, or it is private"),
        ("plain/x", None, "it: no such model, or it is private"),
        ("gated/x", None, "it: gated; accept its terms at http"),
        ("refused/x", None, "it: no access to http.*; check"),
        ("owner/x", "v9", "it: no revision 'v9' at http"),
        ("a b", None, "it: neither a folder nor an id of the Hub"),
    ],
)
def test_an_unavailable_model_is_one_clear_line(
    online: Path, model: str, revision: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_hub(model, "it", revision)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["owner/x", "bare/x", "unsteady/x"])
def test_other_responses_are_left_to_the_library(online: Path, model: str) -> None:
    assert check_hub(model, "it") is False


def test_a_slow_response_is_not_an_error(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.1)
    assert check_hub("slow/x", "it") is False


def test_a_local_folder_needs_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", None)
    assert check_hub(str(tmp_path), "it") is False


def test_without_network_downloaded_files_are_used(
    online: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
        with pytest.raises(UserError, match=r"no network: 127.*HF_HUB_OFFLINE=1 if it is"):
            check_hub("owner/x", "it")
        download(online, "owner/x")
        assert is_downloaded("owner/x")
        assert check_hub("owner/x", "it") is True
    assert "using the downloaded files" in caplog.text


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("http_proxy", "http://user:secret@proxy:80a"),
        ("http_proxy", "proxy:99999"),
        ("ALL_PROXY", "http://[::1"),
    ],
)
def test_the_error_for_an_invalid_proxy_hides_its_password(
    online: Path, monkeypatch: pytest.MonkeyPatch, name: str, address: str
) -> None:
    point_to("http://hub.example", monkeypatch)
    monkeypatch.setenv(name, address)
    pattern = f"no network: hub.example: {name}: expected an address like http://proxy"
    with pytest.raises(UserError, match=pattern) as error:
        check_hub("owner/x", "it")
    assert "secret" not in str(error.value)
    download(online, "owner/x")
    assert check_hub("owner/x", "it") is True


@pytest.mark.parametrize("endpoint", ["http://hub:80a", "http://[::1"])
def test_an_invalid_endpoint_is_named(
    online: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    point_to(endpoint, monkeypatch)
    with pytest.raises(UserError, match="HF_ENDPOINT: expected an address like https://hugging"):
        check_hub("owner/x", "it")


def test_a_network_without_responses_times_out(
    online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, packets are dropped, or no name server answers."""
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(hub.Connection, "_connect", lambda *_: None)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"no network: .* no connection within 0.2 s"):
        check_hub("owner/x", "it")
    assert time.monotonic() - started < 5


def test_a_host_without_tls_counts_as_no_network(
    online: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """An https endpoint on a plain HTTP server."""
    point_to(server.replace("http:", "https:"), monkeypatch)
    with pytest.raises(UserError, match="no network"):
        check_hub("owner/x", "it")


def test_offline_a_model_that_is_not_downloaded_is_an_error(
    online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not downloaded, and HF_HUB_OFFLINE is set"):
        check_hub("owner/x", "it")
    download(online, "owner/x")
    assert check_hub("owner/x", "it") is True


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("caption {pool} --source x --model gated/x", "captioner gated/x: gated; accept its terms"),
        ("caption {pool} --source x --model open_clip:hf-hub:gone/x", "hf-hub:gone/x: no such"),
        ("score {pool} --model transformers:nobody/x", "scorer transformers:nobody/x: no such"),
        ("score {pool} --model hf-hub:gated/x", "model hf-hub:gated/x: gated; accept its terms"),
    ],
)
def test_every_backend_checks_the_hub_first(
    online: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    pool = write_pool(tmp_path / "pool", shards=1, samples=1)
    at = ["--work", str(tmp_path / "w")]
    assert main([*command.format(pool=pool).split(), *at]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last


def test_a_tag_of_open_clip_without_network(
    online: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from capmix.models.open_clip import load_open_clip

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        point_to(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
        with pytest.raises(UserError, match=r"model ViT-B-32/laion2b_s34b_b79k: .*no network"):
            load_open_clip("ViT-B-32/laion2b_s34b_b79k", "cpu", "float32")
