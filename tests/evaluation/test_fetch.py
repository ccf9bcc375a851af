"""Download with the Hub's client from a server that behaves like the Hub."""

import hashlib
import http.server
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evalsets import write_classification
from web_server import running

from capmix.errors import UserError
from capmix.evaluation.fetch import fetch
from capmix.evaluation.other_sets import open_evalset
from capmix.evaluation.tasks import TASKS

TASK = next(task for task in TASKS if task.key == "cifar10")
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """A server of one dataset repository from a folder."""

    root: Path
    lies = 0
    requested: list[str]
    address: str

    def log_message(self, *_: object) -> None:
        """Do not print to the terminal."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/datasets/{TASK.hub}/tree/"):
            self._json([{"type": "file", "path": n, "size": s, "oid": "0" * 40}
                        for n, s in self._sizes().items()])  # fmt: skip
        elif path.startswith(f"/api/datasets/{TASK.hub}"):
            files = [{"rfilename": n, "size": s + self.lies} for n, s in self._sizes().items()]
            self._json({"id": TASK.hub, "sha": REVISION, "siblings": files, "private": False,
                        "downloads": 0, "tags": []})  # fmt: skip
        else:
            self._file(path)

    do_HEAD = do_GET  # noqa: N815

    def _sizes(self) -> dict[str, int]:
        files = [p for p in sorted(self.root.rglob("*")) if p.is_file()]
        return {str(p.relative_to(self.root)): p.stat().st_size for p in files}

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, path: str) -> None:
        name = path.partition(f"/resolve/{REVISION}/")[2]
        source = self.root / name
        if not name or not source.is_file():
            self.send_error(404)
            return
        data = source.read_bytes()
        if self.command == "GET":
            self.requested.append(name)
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    import huggingface_hub.constants as constants

    write_classification(tmp_path / "hub", [0, 1, 2, 3])
    (tmp_path / "hub/script.py").write_text("raise SystemExit")
    handler = type("Handler", (Hub,), {"root": tmp_path / "hub", "requested": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_port}"
    handler.address = address
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running(server):
        yield handler


def test_a_set_is_fetched_and_what_is_there_is_kept(hub: type[Hub], tmp_path: Path) -> None:
    (folder,) = fetch([TASK], str(tmp_path / "sets"), hub.address)
    assert folder == tmp_path / "sets/wds_cifar10_test"
    assert len(list(open_evalset(str(folder)).items())) == 4
    assert not (folder / "script.py").exists()
    asked = len(hub.requested)
    (folder / "test/0.tar").unlink()
    fetch([TASK], str(tmp_path / "sets"), hub.address)
    assert hub.requested[asked:] == ["test/0.tar"]


def test_a_file_of_another_size_is_told(hub: type[Hub], tmp_path: Path) -> None:
    hub.lies = 1
    with pytest.raises(UserError, match="Delete it and rerun"):
        fetch([TASK], str(tmp_path / "sets"), hub.address)


def test_a_hub_that_is_not_there_is_told(hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot download"):
        fetch([TASK], str(tmp_path / "sets"), "http://127.0.0.1:9")
