"""moto's S3 server, in a thread of the test."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from web_server import POLL
from werkzeug.serving import make_server

from capmix.storage.s3 import S3FileSystem

BUCKET = "bucket"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class S3:
    """A server that records requests and can fail.

    `requests` are the requests as `METHOD path?query`, and `signed` their signatures. The next
    `faults` requests that match `fails` are answered with that status.
    """

    requests: list[str] = field(default_factory=list)
    signed: list[str] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    fails: Callable[[str], bool] = lambda _: True

    @cached_property
    def fs(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def s3_server() -> Iterator[S3]:
    """Yield a server, in an environment that directs s3:// to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    s3, app = S3(), DomainDispatcherApplication(create_backend_app)

    def watched(environ: Any, start_response: Any) -> Any:
        query = environ.get("QUERY_STRING", "")
        s3.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{query}")
        s3.signed.append(environ.get("HTTP_AUTHORIZATION", ""))
        if s3.faults and s3.fails(s3.requests[-1]):
            start_response(f"{s3.faults.pop(0)} fault", [("Content-Length", "0")])
            return [b""]
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, watched, threaded=True)
    threading.Thread(target=server.serve_forever, args=(POLL,), daemon=True).start()
    settings = SETTINGS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with suppress(FileExistsError):  # servers of one process share their buckets
            s3.fs.mkdir(BUCKET)
        yield s3
    finally:
        S3FileSystem.clear_instance_cache()
        server.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
