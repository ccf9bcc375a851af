"""Whether a model of the Hub can be had, found out within seconds and before anything is loaded.

huggingface_hub repeats its requests for minutes where there is no network, and transformers asks
for one file after another. Here one connection is tried, then one file is asked for; the download
itself is the library's, with its own time-outs.
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

CONNECT_SECONDS = 8.0  # for the host's name and all of its addresses
ADDRESS_SECONDS = 4.0
ANSWER_SECONDS = 10.0
TRIES = 2
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
UNREACHED = {"ConnectError", "ConnectTimeout", "ProxyError", "SSLError"}  # of httpx and its heirs
LOCAL = "name a local folder of the model, or set HF_HUB_OFFLINE=1 for one that is downloaded"


class Connection:
    """A connection to the host of `url`, or to the proxy for it, tried in a thread of its own."""

    def __init__(self, url: str):
        self._until = time.monotonic() + CONNECT_SECONDS
        self._problem: Future[str | None] = Future()
        try:
            place = _place(url)
        except ValueError as error:
            self._problem.set_result(str(error))
            return
        # Name servers that do not answer hold a thread for longer than any time-out of a socket.
        Thread(target=self._connect, args=place, daemon=True).start()

    def problem(self) -> str | None:
        """Why there is none, at most CONNECT_SECONDS after it was begun; None: there is one."""
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
    """Host and port of a URL, or of the proxy for it. Raises ValueError that names the environment
    variable of an address that is none, and not the address, which may hold a password."""
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
            f"{variable}: expected an address such as {example}; correct or unset it"
        ) from None


def connect_to_hub() -> Connection | None:
    """Begin a connection to the Hub, for check_hub; None where it is not to be asked."""
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
    """Whether the Hub cannot be reached and `model`, an id or a local path, is downloaded.

    `what` begins every error, `file` is one that such models have. Raises UserError where there is
    no such model or revision, where it is gated or private, and where it is not downloaded and
    there is no network. A slow answer is no error.
    """
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
                "or name a local folder of the model"
            )
        return True
    problem = (connection or Connection(constants.ENDPOINT)).problem()
    if problem is None and not is_here:
        problem = _ask(model, what, revision, file)
    if problem is None:
        return False
    host = constants.ENDPOINT.partition("://")[2].partition("/")[0]
    if not is_here:
        raise UserError(f"{what}: cannot be loaded (no network: {host}: {problem}); {LOCAL}")
    log.warning("%s: no network (%s: %s); the downloaded files are used", what, host, problem)
    return True


def is_downloaded(model: str) -> bool:
    """Whether weights of a Hub id are in the cache."""
    try:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name
    except ImportError:
        return False
    name = repo_folder_name(repo_id=model, repo_type="model")
    snapshots = Path(constants.HF_HUB_CACHE) / name / "snapshots"
    return any(path.suffix in WEIGHTS for path in snapshots.rglob("*"))


def _ask(model: str, what: str, revision: str | None, file: str) -> str | None:
    """Ask for a file of a model: None, or why the Hub cannot be reached. Raises UserError."""
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
        return _tried(partial(get_hf_file_metadata, url, timeout=ANSWER_SECONDS))
    except GatedRepoError as error:
        raise UserError(
            f"{what}: gated; accept its terms at {page}, then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: no revision {revision!r} at {page}") from error
    except EntryNotFoundError:
        return None  # what its repository lacks is for the library to say
    except RepositoryNotFoundError as error:
        raise UserError(_no_such(what, page)) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 404):  # 401: as for what may be private
            raise UserError(_no_such(what, page)) from error
        if status == 403:
            raise UserError(f"{what}: {page} refuses access; check HF_TOKEN") from error
        return None  # a fault of the server: the library repeats its request


def _no_such(what: str, page: str) -> str:
    return (
        f"{what}: no such model, or a private one ({page}); check the name (`capmix models` lists "
        "short ones), or set HF_TOKEN"
    )


def _tried(ask: Callable[[], object]) -> str | None:
    """None after an answer, or where one takes long; else why the connection fails each time."""
    problem = None
    for _ in range(TRIES):
        try:
            ask()
            return None
        except Exception as error:  # of the client library, which changes its name
            names = {kind.__name__ for kind in type(error).__mro__}
            if "HfHubHTTPError" in names:
                raise
            if not names & UNREACHED:
                return None
            problem = " ".join(str(error).split())[:200] or type(error).__name__
    return problem
