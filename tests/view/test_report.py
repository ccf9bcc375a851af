import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from browser import Opened, needs_chromium
from samples import write_pool

from capmix.score.settings import ScoreSettings
from capmix.workspace import open_workspace

RUN = [sys.executable, "-m", "capmix"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL that `capmix view` prints for a pool of two shards with four samples each."""
    folder = tmp_path_factory.mktemp("view")
    work = open_workspace(str(write_pool(folder / "pool")), str(folder / "work"))
    work.caption("mini", model="mini")
    work.score(ScoreSettings(model="mini", sources=["raw", "mini"]))
    work.mix("raw-top+synthetic", fraction=0.5)
    server = subprocess.Popen(
        [*RUN, "view", "--work", str(folder / "work")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait(10)


def get(address: str, path: str, **query: str) -> tuple[int, bytes, str]:
    root, _, token = address.partition("?token=")
    asked = urlencode({"token": token} | query)
    try:
        with urllib.request.urlopen(f"{root}{path}?{asked}") as answer:
            return answer.status, answer.read(), answer.headers["content-type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), ""


def test_only_who_has_the_token_on_this_machine_is_answered(served: str) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", served)
    for path in ("", "report", "rows", "decisions", "image", "api/samples", "picture"):
        assert get(served, path, token="wrong")[0] == 403
        assert get(served, path, token="")[0] == 403
    request = urllib.request.Request(served, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)


def test_rows_decisions_and_images_are_read_on_demand(served: str) -> None:
    everything = json.loads(get(served, "rows")[1])["samples"]
    assert len(everything) == 8
    answer = json.loads(get(served, "rows", shard="00001")[1])
    of_shard = answer["samples"]
    assert answer["of"] == 4
    assert [row["key"] for row in of_shard] == [f"00001{i:04d}" for i in range(4)]
    assert {row["uid"] for row in of_shard} < {row["uid"] for row in everything}
    chosen = json.loads(get(served, "decisions", subset="raw-top50+mini", shard="00001")[1])
    assert len(chosen) == 4
    assert set(chosen) <= {"raw", "mini"}
    row = of_shard[2]
    status, data, kind = get(served, "image", shard="00001", key=row["key"], uid=row["uid"])
    assert (status, kind) == (200, "image/webp")
    assert data[8:12] == b"WEBP"


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("rows", {"shard": "../../etc"}),
        ("decisions", {"subset": "../pool", "shard": ""}),
        ("image", {"shard": "../x", "key": "a", "uid": "b"}),
        ("image", {"shard": "00001", "key": "../../etc/passwd", "uid": "b"}),
        ("etc/passwd", {}),
    ],
)
def test_what_is_not_of_the_pool_is_not_found(served: str, path: str, query: dict) -> None:
    assert get(served, path, **query)[0] == 404


@needs_chromium
def test_the_page_shows_samples_of_a_shard_and_their_images(opened: Opened, served: str) -> None:
    with opened(served.replace("/?", "/report?")) as seen:
        page = seen.page
        seen.until("document.querySelectorAll('.example').length === 8")
        page.select_option("[name=shard]", "00001")
        seen.until("document.querySelectorAll('.example').length === 4")
        seen.until(
            "[...document.querySelectorAll('.example img')].every((i) => i.naturalWidth > 0)"
        )
        page.wait_for_selector(".said.chosen")
        assert seen.errors == []
        root = served.partition("?")[0]
        assert all(one.startswith((root, "data:", "blob:")) for one in seen.requests)
        assert seen.axe() == []


def test_a_port_that_is_taken_and_a_missing_directory_are_one_line(
    served: str, tmp_path: Path
) -> None:
    port = served.split(":")[2].partition("/")[0]
    pool, work = str(write_pool(tmp_path / "pool")), str(tmp_path / "work")
    open_workspace(pool, work).index()
    for arguments, message in (
        (["--work", work, "--port", port], f"--port {port}: "),
        (["--work", str(tmp_path / "none")], "no pool.json"),
    ):
        found = subprocess.run([*RUN, "view", *arguments], capture_output=True, text=True)
        assert found.returncode == 2
        assert message in found.stderr
        assert "Traceback" not in found.stderr
