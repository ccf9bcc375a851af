"""Uploads to a fake Hugging Face Hub without Xet."""

import hashlib
import json
import time
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from photos import mixed, photo, write_photos
from web_server import running

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.workspace import Workspace

pytest.importorskip("huggingface_hub")
TOKEN = "hf_SecretSecretSecret"
REPO = "user/name"


class Hub(BaseHTTPRequestHandler):
    """A Hub with one dataset.

    `files` are the committed files, `objects` the uploaded bytes by sha256, and `puts` all uploads.
    `refuse` maps path prefixes to error statuses. Uploads fail after the first `drops_after` ones.
    """

    files: dict[str, bytes]
    objects: dict[str, bytes]
    puts: list[str]
    commits: list[list[str]]
    created: list[dict[str, Any]]
    tokens: set[str | None]
    refuse: dict[str, int]
    drops_after: int
    private: bool | None  # None: the dataset does not exist

    def log_message(self, *given: Any) -> None:
        pass

    def reply(self, status: int, answer: Any = None) -> None:
        data = json.dumps({} if answer is None else answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.startswith("/api"):
            self.tokens.add(self.headers.get("Authorization"))
        for begin, status in self.refuse.items():
            if self.path.startswith(begin):
                return self.reply(status, {"error": f"refused, {TOKEN}"})
        own = f"/api/datasets/{REPO}"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            is_new = self.private is None
            if is_new:
                type(self).private = self.created[-1].get("visibility") == "private" or bool(
                    self.created[-1].get("private")
                )
            return self.reply(200 if is_new else 409, {"url": f"/datasets/{REPO}"})
        if self.path.split("?")[0] == own:
            if self.private is None:
                return self.reply(404, {"error": "Repository not found"})
            return self.reply(200, {"id": REPO, "private": self.private})
        if self.path.startswith(f"{own}/tree/main"):
            return self.reply(200, [self.about(*one) for one in self.files.items()])
        if self.path.startswith(f"{own}/preupload/main"):
            paths = [one["path"] for one in json.loads(body)["files"]]
            return self.reply(200, {"files": [
                {"path": one, "uploadMode": self.mode(one), "shouldIgnore": False, "oid": None}
                for one in paths
            ]})  # fmt: skip
        if self.path == f"/datasets/{REPO}.git/info/lfs/objects/batch":
            host = f"http://{self.headers['Host']}"
            return self.reply(200, {"transfer": "basic", "objects": [
                one if one["oid"] in self.objects else
                {**one, "actions": {"upload": {"href": f"{host}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]})  # fmt: skip
        if self.path.startswith("/lfs/"):
            if len(self.puts) >= self.drops_after:
                self.close_connection = True
                return None
            oid = self.path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.puts.append(oid)
            self.objects[oid] = body
            return self.reply(200)
        if self.path == f"{own}/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
            url = f"http://{self.headers['Host']}/datasets/{REPO}/commit/{'1' * 40}"
            return self.reply(200, {"commitUrl": url, "commitOid": "1" * 40})
        return self.reply(200)

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

    def mode(self, path: str) -> str:
        return "regular" if path.endswith((".md", ".json", ".txt")) else "lfs"

    def about(self, path: str, data: bytes) -> dict[str, Any]:
        size, oid = len(data), hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
        if self.mode(path) == "lfs":
            sha256 = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": sha256, "size": size, "pointerSize": 120}
        return found

    def commit(self, operations: list[dict[str, Any]]) -> None:
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                self.files[value["path"]] = b64decode(value["content"])
            elif one["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
            elif one["key"] == "deletedFile":
                del self.files[value["path"]]
        self.commits.append([one["value"].get("path", "") for one in operations])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {
        "files": {".gitattributes": b"x"}, "objects": {}, "puts": [], "commits": [], "created": [],
        "tokens": set(), "refuse": {}, "drops_after": 10**9,
        "private": None,
    })  # fmt: skip
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    # A clock of its own: time.sleep itself would return at once in all threads of the process.
    clock = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(server):
        yield handler


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("push")
    return mixed(write_photos(folder / "photos"), folder / "work")


def local(folder: Path) -> dict[str, bytes]:
    """Return the files that an export uploads."""
    return {
        name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and (name := str(path.relative_to(folder)))
        and not name.startswith(("_", "."))
    }


def test_the_files_and_the_card_are_pushed_and_the_card_last(
    work: Workspace, tmp_path: Path, hub: type[Hub], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/private.key").write_text("not of the export")
    with caplog.at_level("DEBUG"):
        work.export("raw", str(tmp_path / "out"), format="files", push=REPO, private=True)
    (tmp_path / "out/private.key").unlink()
    assert hub.files == {".gitattributes": b"x"} | local(tmp_path / "out")
    assert hub.created[0]["name"] == "name"
    assert hub.created[0]["organization"] == "user"
    assert "private" in json.dumps(hub.created[0])
    assert hub.commits[-1][-1] == "README.md"
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text


def test_images_that_were_there_already_are_pushed_too(
    work: Workspace, tmp_path: Path, hub: type[Hub]
) -> None:
    image = tmp_path / "out/train/IMG_1.JPG"
    image.parent.mkdir(parents=True)
    image.write_bytes(photo(0, "IMG_1.JPG"))
    for _ in range(2):
        work.export("raw", str(tmp_path / "out"), format="imagefolder", push=REPO)
        assert hub.files == {".gitattributes": b"x"} | local(tmp_path / "out")
    assert "train/IMG_1.JPG" in hub.files


def test_nothing_is_sent_twice(work: Workspace, tmp_path: Path, hub: type[Hub]) -> None:
    work.export("raw", str(tmp_path / "out"), format="parquet", push=REPO)
    sent, commits = list(hub.puts), len(hub.commits)
    work.export("raw", str(tmp_path / "out"), format="parquet", push=REPO)
    assert (hub.puts, len(hub.commits)) == (sent, commits)


def test_a_dropped_connection_is_one_line_and_a_rerun_sends_the_rest(
    work: Workspace, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.export.push.FILES_AT_ONCE", 1)
    out = str(tmp_path / "out")
    hub.drops_after = 1
    with pytest.raises(UserError) as caught:
        work.export("raw", out, format="files", push=REPO)
    assert f"--push {REPO}: upload failed (" in str(caught.value)
    assert "Rerun the same command to resume" in str(caught.value)
    assert "README.md" not in hub.files
    (first,) = hub.puts
    hub.drops_after = 10**9
    work.export("raw", out, format="files", push=REPO)
    assert len(hub.puts) == len(set(hub.puts)) == 3
    assert hub.puts[0] == first
    assert hub.files == {".gitattributes": b"x"} | local(tmp_path / "out")


@pytest.mark.parametrize(
    ("status", "path", "advice"),
    [
        (401, "/api/repos", "run `hf auth login`, or set HF_TOKEN"),
        (403, "/api/repos", "the token has no write access"),
        (404, "/api/repos", "user, organization or dataset not found"),
        (403, f"/api/datasets/{REPO}/commit", "the token has no write access"),
        (409, f"/api/datasets/{REPO}/commit", "conflict with a concurrent change"),
        (500, f"/api/datasets/{REPO}/commit", "upload failed"),
    ],
)
def test_a_refusal_is_one_line_with_what_to_do(
    work: Workspace, tmp_path: Path, hub: type[Hub], status: int, path: str, advice: str
) -> None:
    hub.refuse[path] = status
    with pytest.raises(UserError) as caught:
        work.export("raw", str(tmp_path / "out"), format="csv", push=REPO)
    assert advice in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    is_early = path == "/api/repos"
    assert (tmp_path / "out/captions.csv").exists() is not is_early


def test_an_earlier_export_stays_where_the_hub_refuses(
    work: Workspace, tmp_path: Path, hub: type[Hub]
) -> None:
    out = tmp_path / "out"
    work.export("raw", str(out), format="files")
    before = local(out)
    hub.refuse["/api/repos"] = 401
    with pytest.raises(UserError, match="run `hf auth login`"):
        work.export("raw", str(out), format="csv", push=REPO)
    assert local(out) == before
    hub.refuse.clear()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a capmix export"):
        work.export("raw", str(tmp_path / "mine"), format="csv", push=REPO)
    assert not hub.created  # no empty dataset is created


def test_private_samples_are_not_sent_to_a_data_set_that_is_public(
    work: Workspace, tmp_path: Path, hub: type[Hub]
) -> None:
    out = tmp_path / "out"
    hub.private = False
    with pytest.raises(UserError, match=f"--push {REPO}: --private has no effect") as caught:
        work.export("raw", str(out), format="csv", push=REPO, private=True)
    assert "--private" in str(caught.value)
    assert not hub.commits
    assert not out.exists()
    hub.private = True
    work.export("raw", str(out), format="csv", push=REPO, private=True)
    assert "captions.csv" in hub.files


def test_files_of_another_export_are_named_and_removed_when_asked_for(
    work: Workspace, tmp_path: Path, hub: type[Hub]
) -> None:
    hub.files["data/old.parquet"] = b"old"
    hub.files["README.md"] = b"filled in on the web"
    with pytest.raises(UserError, match="has 1 files that are not in this export .first: data/old"):
        work.export("raw", str(tmp_path / "out"), format="csv", push=REPO)
    work.export("raw", str(tmp_path / "out"), format="csv", push=REPO, overwrite=True)
    assert hub.files == {".gitattributes": b"x"} | local(tmp_path / "out")


def test_a_card_that_was_filled_in_on_the_hub_is_kept(
    work: Workspace, tmp_path: Path, hub: type[Hub], caplog: pytest.LogCaptureFixture
) -> None:
    work.export("raw", str(tmp_path / "out"), format="csv", push=REPO)
    hub.files["README.md"] = b"filled in on the web"
    work.export("raw", str(tmp_path / "out"), format="csv", push=REPO)
    assert hub.files["README.md"] == b"filled in on the web"
    assert "kept the README.md of" in caplog.text


def test_without_out_the_export_is_in_the_work_directory(
    work: Workspace, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--work", work.store.root, "--subset", "raw", "--format", "csv"]
    assert main(["export", *place, "--push", REPO]) == 0
    assert work.store.exists("shards/raw/captions.csv")
    shown = capsys.readouterr().err
    assert f"/datasets/{REPO}" in shown
    assert TOKEN not in shown
    assert main(["export", *place, "--push", "no-user"]) == 2
    assert main(["export", *place, "--private", "--out", str(tmp_path / "o")]) == 2
