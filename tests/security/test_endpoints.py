"""Untrusted caption servers, object stores and hubs; keys and passwords."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile import Quiet
from null_models import null_captions
from s3_server import BUCKET, S3, SETTINGS
from samples import write_pool

from capmix.caption.settings import CaptionSettings
from capmix.cli.main import main
from capmix.errors import UserError
from capmix.evaluation.fetch import fetch
from capmix.evaluation.tasks import TASKS
from capmix.workspace import Workspace, open_workspace

KEY = "sk-a-key-that-nobody-may-see"


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def said(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Captions(Quiet):
    """Respond like a caption server; `reply` may be replaced."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply()

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "m"}]}).encode())

    def reply(self) -> None:
        self.answer(200, said("a picture"))


class Redirecting(Captions):
    def reply(self) -> None:
        self.answer(307, b"", Location="/elsewhere")


def served_pool(folder: Path, address: str) -> tuple[Workspace, CaptionSettings]:
    work = open_workspace(str(write_pool(folder / "pool", 1, 3)), str(folder / "w"))
    settings = CaptionSettings(model=f"server:{address}/v1#m", timeout=10, retries=0, concurrency=1)
    return work, settings


def test_a_redirect_of_a_caption_server_is_not_followed(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    address, asked = serving(Redirecting)
    work, settings = served_pool(tmp_path, address)
    with pytest.raises(UserError, match="status 307"):
        work.caption("served", settings)
    assert {path for _, path, _ in asked} == {"/v1/chat/completions"}


def test_the_servers_key_is_in_no_file_and_no_message(
    serving: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CAPMIX_SERVER_KEY", KEY)
    address, asked = serving(Captions)
    work, settings = served_pool(tmp_path, address)
    work.caption("served", settings)
    work.mix("synthetic", synthetic="served")
    work.report()
    work.export("served", str(tmp_path / "out"))
    assert {headers.get("Authorization") for _, _, headers in asked} == {f"Bearer {KEY}"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [data for data in written if KEY.encode() in data]
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err


@pytest.mark.parametrize(
    "command",
    [
        "index http://me:hush@127.0.0.1:9/pool",
        "index https://hush@127.0.0.1:9/{{00000..00003}}.tar",
        "index http://127.0.0.1:9/0.tar?X-Amz-Signature=hush&part=1",
        "server http://me:hush@127.0.0.1:9/v1#m",
        "server http://127.0.0.1:9/v1?api_key=hush#m",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, _, address = command.partition(" ")
    pool = address if kind == "index" else str(write_pool(tmp_path / "pool", 1, 1))
    model = f"server:{address}" if kind == "server" else "mini"
    work = str(tmp_path / "w")
    assert main(["caption", pool, "--work", work, "--source", "a", "--model", model]) == 2
    captured = capsys.readouterr()
    assert "a secret" in captured.err
    assert "hush" not in captured.out + captured.err
    assert not [path for path in tmp_path.rglob("*.json") if "hush" in path.read_text()]


def test_keys_of_s3_are_in_no_file_of_a_run(
    s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.fs.put(str(write_pool(tmp_path / "pool", 1, 3)), f"{BUCKET}/keys", recursive=True)
    work = open_workspace(f"s3://{BUCKET}/keys", str(tmp_path / "w"))
    work.run(partial(null_captions, work.pool))
    work.mix("raw")
    work.export("raw", str(tmp_path / "out"))
    work.report()
    secret = SETTINGS["AWS_SECRET_ACCESS_KEY"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [data for data in written if secret.encode() in data]
    captured = capsys.readouterr()
    assert secret not in captured.out + captured.err


TASK = next(task for task in TASKS if task.key == "cifar10")


class HostileHub(Quiet):
    """A repository with a file name that contains `..`."""

    names = ("classnames.txt", "../../escape.txt", "a/../../../escape.txt")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in self.names]
            self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith("/api/"):
            files = [{"rfilename": name, "size": 1} for name in self.names]
            about = {"id": TASK.hub, "sha": "0" * 40, "siblings": files, "private": False,
                     "downloads": 0, "tags": []}  # fmt: skip
            self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        else:
            self.answer(200, b"x", ETag='"1"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET  # noqa: N815


def test_names_of_a_hostile_hub_stay_in_the_sets_folder(
    serving: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address, asked = serving(HostileHub)
    with pytest.raises(UserError, match="evalsets: "):
        fetch([TASK], str(tmp_path / "a/b/sets"), address)
    assert all(name.startswith("a/b/sets/wds_cifar10_test/") for name in files(tmp_path))
    own = (f"/api/datasets/{TASK.hub}", f"/datasets/{TASK.hub}/")
    assert asked
    assert all(path.startswith(own) for _, path, _ in asked)
