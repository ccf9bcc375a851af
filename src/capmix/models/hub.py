"""Check within seconds, before anything is loaded, whether a Hub model is available.

Without a network, huggingface_hub retries its requests for minutes, and transformers requests one
file after another. This module tries one connection, then requests the metadata of one file. The
download itself is left to the library and its own timeouts.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from capmix.errors import UserError
from capmix.models.registry import require

log = logging.getLogger(__name__)

CONNECT_SECONDS = 8.0  # to resolve the host's name and try all of its addresses
ADDRESS_SECONDS = 4.0
ANSWER_SECONDS = 10.0
TRIES = 2
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
UNREACHED = {"ConnectError", "ConnectTimeout", "ProxyError", "SSLError"}  # of httpx and its forks
LOCAL = "give a local folder of the model, or set HF_HUB_OFFLINE=1 if it is already downloaded"


class Connection:
    """An attempt, in its own thread, to connect to the host of `url` or to the proxy for it."""

    def __init__(self, url: str):
        self._until = time.monotonic() + CONNECT_SECONDS
        self._problem: Future[str | None] = Future()
        try:
            place = _place(url)
        except ValueError as error:
            self._problem.set_result(str(error))
            return
        # A name server that does not answer blocks the thread longer than any socket timeout.
        Thread(target=self._connect, args=place, daemon=True).start()

    def problem(self) -> str | None:
        """Return why the connection failed; None if it succeeded.

        Waits until CONNECT_SECONDS after the start of the attempt.
        """
        try:
            return self._problem.result(max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            return f"no connection within {CONNECT_SECONDS:g} s"

    def _connect(self, host: str, port: int) -> None:
        try:
            with socket.create_connection((host, port), ADDRESS_SECONDS):
                pass
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be encoded
            self._problem.set_result(getattr(error, "strerror", None) or str(error))
        else:
            self._problem.set_result(None)


def _place(url: str) -> tuple[str, int]:
    """Return host and port of a URL, or of the proxy for it.

    Raises ValueError for an invalid address. Its message names the environment variable but not the
    address, which may hold a password.
    """
    scheme = url.partition("://")[0]
    host, port = _host_and_port(url, "HF_ENDPOINT", "https://huggingface.co")
    proxies = getproxies()
    kind = scheme if proxies.get(scheme) else "all"
    proxy = proxies.get(kind)
    if not proxy or proxy_bypass(host):
        return host, port
    names = (f"{kind}_proxy", f"{kind}_proxy".upper())
    variable = next((name for name in names if os.environ.get(name)), names[0])
    address = proxy if "://" in proxy else f"http://{proxy}"
    return _host_and_port(address, variable, "http://proxy.example:3128")


def _host_and_port(address: str, variable: str, example: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        raise ValueError(
            f"{variable}: expected an address like {example}; correct or unset the variable"
        ) from None


def connect_to_hub() -> Connection | None:
    """Start connecting to the Hub, for check_hub. Returns None if HF_HUB_OFFLINE is set."""
    require(["huggingface_hub"], "models of the Hub")
    from huggingface_hub import constants

    return None if constants.HF_HUB_OFFLINE else Connection(constants.ENDPOINT)


def check_hub(
    model: str,
    what: str,
    revision: str | None = None,
    file: str = "config.json",
    connection: Connection | None = None,
) -> bool:
    """Check that `model`, a Hub id or a local path, is available.

    Returns true if the Hub cannot be reached but the model is downloaded, so that it must be loaded
    offline. `what` begins every error message. `file` is a file that every such model has.

    Raises UserError if the model or revision does not exist, if the model is gated or private, or
    if it is not downloaded and there is no network. A slow response is not an error.
    """
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise UserError(f"{what}: no such folder")
    if Path(model).exists():
        return False
    require(["huggingface_hub"], what)
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    try:
        is_here = is_downloaded(model)
    except HFValidationError as error:
        raise UserError(f"{what}: neither a folder nor an id of the Hub") from error
    if constants.HF_HUB_OFFLINE:
        if not is_here:
            raise UserError(
                f"{what}: cannot be loaded (not downloaded, and HF_HUB_OFFLINE is set); unset it, "
                "or give a local folder of the model"
            )
        return True
    problem = (connection or Connection(constants.ENDPOINT)).problem()
    if problem is None and not is_here:
        problem = _request(model, what, revision, file)
    if problem is None:
        return False
    host = constants.ENDPOINT.partition("://")[2].partition("/")[0]
    if not is_here:
        raise UserError(f"{what}: cannot be loaded (no network: {host}: {problem}); {LOCAL}")
    log.warning("%s: no network (%s: %s); using the downloaded files", what, host, problem)
    return True


def is_downloaded(model: str) -> bool:
    """Whether the Hub cache holds weights of a Hub id."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name
    except ImportError:
        return False
    name = repo_folder_name(repo_id=model, repo_type="model")
    snapshots = Path(constants.HF_HUB_CACHE) / name / "snapshots"
    return any(path.suffix in WEIGHTS for path in snapshots.rglob("*"))


def _request(model: str, what: str, revision: str | None, file: str) -> str | None:
    """Request the metadata of a model's file. Returns why the Hub cannot be reached, else None.

    Raises UserError if the model or revision does not exist or is not accessible.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{model}"
    try:
        url = hf_hub_url(model, file, revision=revision, endpoint=constants.ENDPOINT)
        return _try(partial(get_hf_file_metadata, url, timeout=ANSWER_SECONDS))
    except GatedRepoError as error:
        raise UserError(
            f"{what}: gated; accept its terms at {page}, then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: no revision {revision!r} at {page}") from error
    except EntryNotFoundError:
        return None  # the library reports which files are missing
    except RepositoryNotFoundError as error:
        raise UserError(_no_such(what, page)) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 404):  # the Hub answers 401 for models that may be private
            raise UserError(_no_such(what, page)) from error
        if status == 403:
            raise UserError(f"{what}: no access to {page}; check HF_TOKEN") from error
        return None  # a server error: the library retries


def _no_such(what: str, page: str) -> str:
    return (
        f"{what}: no such model, or it is private ({page}); check the name (`capmix models` lists "
        "short names), or set HF_TOKEN"
    )


def _try(request: Callable[[], object]) -> str | None:
    """Send a request up to TRIES times. Returns why every connection failed, else None.

    A response, or a timeout while waiting for it, counts as a working connection.
    """
    problem = None
    for _ in range(TRIES):
        try:
            request()
            return None
        except Exception as error:  # the library's HTTP client, and so its errors, may change
            names = {kind.__name__ for kind in type(error).__mro__}
            if "HfHubHTTPError" in names:
                raise
            if not names & UNREACHED:
                return None
            problem = " ".join(str(error).split())[:200] or type(error).__name__
    return problem
