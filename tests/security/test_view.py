"""Who can access the server of `capmix view`."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from samples import write_pool

from capmix.workspace import open_workspace


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `capmix view` prints."""
    folder = tmp_path_factory.mktemp("view")
    work = open_workspace(str(write_pool(folder / "pool", 1, 2)), str(folder / "work"))
    work.index()
    command = [sys.executable, "-m", "capmix", "view", "--work", str(folder / "work")]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.terminate()
    server.wait(10)


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine")
def test_view_listens_on_one_address_of_this_machine(served: str) -> None:
    port = int(served.split(":")[2].partition("/")[0])
    socket.create_connection(("127.0.0.1", port), 5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 5)


def test_no_other_page_may_read_frame_or_change_anything(served: str) -> None:
    other = {"Origin": "https://other.example"}
    with urllib.request.urlopen(urllib.request.Request(served, headers=other)) as answer:
        headers = dict(answer.headers)
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        request = urllib.request.Request(served, method=method, headers=other)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(request)
