"""Serve the report on this machine alone, with samples and images read from the pool on demand."""

import secrets
import socket
from collections.abc import Callable
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.measure.population import read_sample, scores_of_texts
from capmix.mix.catalog import Catalog
from capmix.mix.columns import folders_of, read_samples
from capmix.mix.parts import check_parts
from capmix.mix.subset import SubsetRows
from capmix.models.registry import require
from capmix.report.compare import compare
from capmix.report.examples import decisions, example_rows, thumbnails
from capmix.report.gather import Found, gather
from capmix.report.page import plotly_js, render_page, steps_of_page
from capmix.report.settings import ReportSettings

HOST = "127.0.0.1"
THUMBNAILS = 2_000  # kept in memory: some 20 MB
# The address has the token: no other page is told it or may frame this one, and nothing is kept.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ROWS = 10_000  # of a shard, some MB as JSON
READERS = 4  # shards read for images at a time


def serve(
    catalog: Catalog,
    scorer: str | None,
    results: str | None,
    port: int,
    on_address: Callable[[str], None],
) -> None:
    """Serve until stopped. `on_address` is told the address, which has the token without which
    nothing is given.

    Raises UserError where the server's packages are missing, or the port is taken.
    """
    require(["uvicorn", "starlette"], "view", "view")
    from capmix.report.connections import run_server

    token = secrets.token_urlsafe(24)
    listener = _listen(port)
    app = make_app(gather(catalog, catalog.scorer(scorer), None, results), token)
    on_address(f"http://{HOST}:{listener.getsockname()[1]}/?token={token}")
    run_server(app, listener)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # who asks before the server runs waits
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"--port {port}: {error}; choose another, or 0 for any free one") from error
    return listener


class Reader:
    """What the server reads for the page: rows of the fair sample or of one shard, and images."""

    def __init__(self, found: Found):
        self.found = found
        self._steps = steps_of_page(found)
        self._shards = {shard.name: shard for shard in found.pool.shards}
        self._locks = [Lock() for _ in range(READERS)]
        self.rows = lru_cache(maxsize=4)(self._rows)
        self.decisions = lru_cache(maxsize=16)(self._decisions)
        self.image = lru_cache(maxsize=THUMBNAILS)(self._image)

    def _rows(self, shard: str) -> tuple[list[dict[str, Any]], int]:
        """Of `shard`, or of the fair sample where it is empty, and how many samples there are: of
        more than ROWS, some of them, evenly spaced. KeyError: no such shard."""
        found = self.found
        table = self._of_shard(shard) if shard else read_sample(found.store)
        count = len(table)
        if shard and count > ROWS:
            table = table.take(pa.array(np.linspace(0, count - 1, ROWS).astype(np.int64)))
        return example_rows(table, found.sources, found.scored, self._steps), count

    def _of_shard(self, name: str) -> pa.Table:
        if name not in self._shards:
            raise KeyError(name)
        columns = self.found.columns()
        parts = check_parts(self.found.store, [self._shards[name]], folders_of(columns.values()))
        table = read_samples(self.found.store, name, columns, parts)
        table = scores_of_texts(table, self.found.scored)
        return table.append_column("shard", pa.repeat(pa.scalar(name), len(table)))

    def _decisions(self, subset: str, shard: str) -> list[str | None]:
        """For each of `rows(shard)`; raises KeyError for no such subset."""
        if subset not in self.found.subsets:
            raise KeyError(subset)
        return decisions(SubsetRows.pinned(self.found.store, subset), self.rows(shard)[0])

    def _image(self, shard: str, key: str, uid: str) -> bytes:
        """A thumbnail as WebP. Raises KeyError where there is no such image, or none to decode."""
        if shard not in self._shards:
            raise KeyError(shard)
        with self._locks[hash(shard) % READERS]:
            row = {"shard": shard, "key": key, "uid": uid}
            return thumbnails(self.found.pool, [row])[uid]


def make_app(found: Found, token: str) -> Any:
    """The server as an ASGI application: /, /rows, /decisions and /image, each with the token."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    reader = Reader(found)
    settings = ReportSettings()
    compared = compare(found.probes, settings.baseline) if found.probes else []
    page = render_page(found, compared, settings, token)[1]

    def answering(read: Callable[..., Any], answer: Callable[[Any], Response], *names: str) -> Any:
        """A handler: checks the token, calls `read` in a thread with the query's `names`."""

        async def handler(request: Request) -> Response:
            given = request.query_params.get("token", "")
            if not secrets.compare_digest(given.encode(), token.encode()):
                return PlainTextResponse("the address that capmix view printed has a token", 403)
            values = [request.query_params.get(name, "") for name in names]
            try:
                found = await run_in_threadpool(read, *values)
            except KeyError as error:
                return PlainTextResponse(f"there is no {error}", 404)
            except UserError as error:
                return PlainTextResponse(str(error), 409)
            response = answer(found)
            response.headers.update(HEADERS)
            return response

        return handler

    def webp(data: bytes) -> Response:
        return Response(data, media_type="image/webp")

    def samples(found: tuple[list[dict[str, Any]], int]) -> Response:
        return JSONResponse({"samples": found[0], "of": found[1]})

    def script(text: str) -> Response:
        return Response(text, media_type="text/javascript")

    return Starlette(
        routes=[
            Route("/", answering(lambda: page, HTMLResponse)),
            Route("/plotly.js", answering(plotly_js, script)),
            Route("/rows", answering(reader.rows, samples, "shard")),
            Route("/decisions", answering(reader.decisions, JSONResponse, "subset", "shard")),
            Route("/image", answering(reader.image, webp, "shard", "key", "uid")),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )
