"""hf:// without a network."""

import socket
from collections.abc import Iterator

import pytest

from capmix.cli.main import main
from capmix.errors import UserError
from capmix.storage.filesystem import open_file_system

huggingface_hub = pytest.importorskip("huggingface_hub")
HF = "hf://datasets/u/n"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("what", ["pool", "work directory"])
def test_a_hub_that_refuses_the_connection_is_one_line(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = closed_port()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(UserError) as caught:
        open_file_system(HF, what)
    assert str(caught.value).startswith(f"{what} {HF}: {address} cannot be reached (")
    assert "Check the network, HF_ENDPOINT and HTTPS_PROXY" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_is_given_up(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent_server)
    monkeypatch.setattr("capmix.storage.hub.ANSWER_WITHIN", 0.2)
    with pytest.raises(UserError, match="cannot be reached"):
        open_file_system(HF, "pool")


def test_an_empty_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "")
    with pytest.raises(UserError, match="cannot be reached"):
        open_file_system(HF, "pool")


def test_the_command_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed_port())
    assert main(["status", HF, "--work", str(tmp_path_factory.mktemp("w"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"capmix: pool {HF}: http://127.0.0.1:")


def test_the_offline_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it"):
        open_file_system(HF, "work directory")
