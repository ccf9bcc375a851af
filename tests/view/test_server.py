"""`capmix view` as a server process: kills, and permission to change something."""

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from samples import write_pool
from view_server import VIEW, serving

from capmix.view.journal import JOURNAL
from capmix.view.server import usual_port
from capmix.workspace import Workspace, open_workspace


def asked(
    address: str, path: str, value: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Return status and response; send a POST if there is a value."""
    root, _, token = address.partition("?token=")
    given = {"X-Capmix-Token": token, "Content-Type": "application/json"} | (headers or {})
    data = None if value is None else value if isinstance(value, bytes) else json.dumps(value)
    body = data.encode() if isinstance(data, str) else data
    request = urllib.request.Request(f"{root}{path}", body, given)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        found = error.read()
        return error.code, json.loads(found) if found.startswith(b"{") else found


def edit(address: str, shard: str, row: int, text: str) -> dict[str, Any]:
    sample = asked(address, f"api/sample?shard={shard}&key={row + 1}")[1]
    base = sample["texts"][0]
    wanted = {"text": text, "base": "raw", "digest": base["digest"]}
    value = {"shard": shard, "uid": sample["uid"], "seen": sample["version"], "set": wanted}
    status, found = asked(address, "api/act", value)
    assert status == 200, found
    return dict(found["row"])


def made(folder: Path) -> Workspace:
    return open_workspace(str(write_pool(folder / "pool", 2, 3)), str(folder / "work"))


def parts(work: Workspace) -> list[pa.Table]:
    """Return the parts of the edits without timestamps."""
    found = []
    for shard in ("00000", "00001"):
        captions = work.store.read_table(f"captions/edited/{shard}.parquet")
        review = work.store.read_table(f"columns/review/{shard}.parquet")
        found += [captions.drop_columns("edited_at"), review.drop_columns("at")]
    return found


def test_a_kill_loses_no_edit_and_parts_are_those_of_a_run_without(tmp_path: Path) -> None:
    killed, whole = made(tmp_path / "killed"), made(tmp_path / "whole")
    with serving(killed.store.root) as (address, server):
        edit(address, "00000", 0, "one")
        edit(address, "00001", 2, "two")
        os.kill(server.pid, signal.SIGKILL)
        server.wait(10)
    journal = Path(killed.store.path(f"edits/edited/{JOURNAL}"))
    with journal.open("ab") as stream:
        stream.write(b'{"at": "2026-')  # a line that was never acknowledged
    with serving(killed.store.root) as (address, _):
        assert asked(address, "api/sample?shard=00000&key=1")[1]["review"]["text"] == "one"
        assert killed.status()["captions/edited"].done == 2  # parts are written at startup
        edit(address, "00000", 1, "three")
    with serving(whole.store.root) as (address, _):
        for shard, row, text in (("00000", 0, "one"), ("00001", 2, "two"), ("00000", 1, "three")):
            edit(address, shard, row, text)
    assert [one.equals(other) for one, other in zip(parts(killed), parts(whole), strict=True)] == [
        True
    ] * 4
    assert killed.store.read_table("captions/edited/00000.parquet")["text"].to_pylist() == [
        "one", "three", None
    ]  # fmt: skip
    fingerprint = killed.store.fingerprint("captions/edited/00000")
    folded = subprocess.run([*VIEW, killed.store.root, "--fold"], capture_output=True, text=True)
    assert (folded.returncode, folded.stdout) == (0, "")
    assert "0 shards written, 2 up to date" in folded.stderr
    assert killed.store.fingerprint("captions/edited/00000") == fingerprint


def test_who_may_change_something(tmp_path: Path) -> None:
    work = made(tmp_path)
    with serving(work.store.root) as (address, _):
        uid = asked(address, "api/sample?shard=00000&key=1")[1]["uid"]
        value = {"shard": "00000", "uid": uid, "seen": 0, "set": {"tags": ["x"]}}

        def status(value: Any = value, **headers: str) -> int:
            return asked(address, "api/act", value, {k.replace("_", "-"): v for k, v in
                                                     headers.items()})[0]  # fmt: skip

        token = address.partition("token=")[2]
        assert status(X_Capmix_Token="") == 403
        assert asked(address, f"api/act?token={token}", value, {"X-Capmix-Token": ""})[0] == 403
        assert status(Origin="https://other.example") == 403
        assert status(Origin="null") == 403
        assert status(Content_Type="text/plain") == 415
        assert status(Host="evil.example") == 400
        assert status(b'{"a": "' + b"x" * 2**18 + b'"}') == 413
        assert status(b"[1]") == 400
        assert status(b"[" * 10_000) == 400
        assert status({**value, "seen": "0"}) == 400
        assert status({**value, "shard": "../../etc"}) == 404
        assert status({**value, "uid": "../x"}) == 404
        assert status({**value, "set": {"text": "a", "base": "../x", "digest": ""}}) == 400
        assert asked(address, "api/act")[0] == 405
        assert asked(address, "api/sample?shard=00000&key=1")[1]["review"] is None
        assert status(Origin=address.partition("/?")[0]) == 200
        assert status() == 409  # the version has changed
        for path in ("thumbnail?shard=00000&row=0", "picture?shard=00000&key=000000000"):
            with urllib.request.urlopen(address.replace("/?", f"/{path}&")) as answer:
                assert answer.headers["content-type"] == "image/webp"
        assert asked(address, "thumbnail?shard=00000&row=3")[0] == 404
        assert asked(address, "picture?shard=00000&key=..%2Fx")[0] == 404


def test_a_read_only_server_shows_all_and_changes_nothing(tmp_path: Path) -> None:
    work = made(tmp_path)
    work.index()
    with serving(work.store.root, "--read-only") as (address, _):
        assert asked(address, "api/pool")[1]["readOnly"] is True
        assert len(asked(address, "api/samples")[1]["rows"]) == 6
        uid = asked(address, "api/sample?shard=00000&key=1")[1]["uid"]
        value = {"shard": "00000", "uid": uid, "seen": 0, "set": {"tags": ["x"]}}
        status, found = asked(address, "api/act", value)
        assert (status, "--read-only" in found["error"]) == (409, True)
        assert asked(address, "api/undo", {})[0] == 409
    assert work.store.folders("captions") == []
    assert not work.store.exists("edits")


def test_a_work_directory_keeps_its_port() -> None:
    """A browser stores unsaved texts per host and port."""
    ports = [usual_port(f"/w/{n}") for n in range(50)]
    assert ports == [usual_port(f"/w/{n}") for n in range(50)]
    assert all(49152 <= port < 65536 for port in ports)
    assert len(set(ports)) > 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--author", ""], "author"),
        (["--author", "a\nb"], "author"),
        (["--source", "raw"], "source raw is reserved for the pool's own text"),
        (["--read-only", "--fold"], "--fold cannot be combined with"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    work = made(tmp_path)
    command = [*VIEW, work.store.root, *options]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
