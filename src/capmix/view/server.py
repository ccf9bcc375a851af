"""Serve the workbench and the report on localhost.

Every request requires the token. Requests that change something are POSTs with the token in a
header, which other web pages cannot send, and a JSON body of up to MOST_BODY bytes.
"""

import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from threading import Lock
from typing import Any

import jinja2

from capmix.engine.progress import progress
from capmix.errors import UserError
from capmix.mix.catalog import Catalog
from capmix.report.gather import gather
from capmix.storage.json_text import parse_object
from capmix.view.journal import ConflictError, Journal
from capmix.view.parts import check_free, journal_folder
from capmix.view.pictures import TYPE, Pictures
from capmix.view.report import ReportPages
from capmix.view.samples import ShardCache, text_digest
from capmix.view.settings import ViewSettings, account
from capmix.view.workbench import (
    MOST_SHARDS,
    BadRequestError,
    Query,
    Start,
    UnknownError,
    Workbench,
)

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
MOST_BYTES = 2 << 30  # pools up to this size are indexed at startup
MOST_BODY = 256 * 1024  # bytes of a request body; enough for the longest text and its tags
TOKEN_HEADER = "x-capmix-token"  # noqa: S105
# The URL contains the token: do not send it as a referrer, do not allow framing, do not cache.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
STATUS = {BadRequestError: 400, UnknownError: 404, ConflictError: 409}


def make_workbench(catalog: Catalog, settings: ViewSettings) -> Workbench:
    """Return the workbench of a pool.

    A small pool is indexed immediately; in a larger one, each shard is indexed when it is first
    displayed. Raises UserError if edits cannot be written because the work directory is remote or
    the source name is used by other captions.
    """
    store, source = catalog.store, settings.source
    is_read_only = settings.read_only
    if not is_read_only:
        check_free(store, source)
        if not store.is_local:
            raise UserError(
                f"view: {store.location} is remote, and edits require a local work directory; use "
                "--read-only, or edit a local copy"
            )
    folder = journal_folder(store, source) if store.is_local else ""
    journal = Journal(folder, settings.author or account(), is_read_only)
    catalog.scorer(settings.scorer)  # raises UserError for a scorer without scores
    cache = ShardCache(catalog, settings.scorer, source, not is_read_only)
    shards = catalog.pool.shards
    is_small = len(shards) <= MOST_SHARDS and sum(shard.bytes for shard in shards) <= MOST_BYTES
    if is_small and not is_read_only:
        for shard in progress("index", "shard", work=shards):
            cache.index(shard)
    return Workbench(catalog, cache, journal, source)


def serve(catalog: Catalog, settings: ViewSettings, on_address: Callable[[str], None]) -> None:
    """Serve until stopped, writing parts of journaled edits at startup and at shutdown.

    `on_address` is called with the URL, including the token. Raises UserError if the port is in
    use or edits cannot be written.
    """
    if settings.fold and settings.read_only:
        raise UserError("view: --fold cannot be combined with --read-only")
    listener = None
    if not settings.fold:
        place = catalog.store.root
        listener = _listen(settings.port) if settings.port else _listen_anywhere(place)
    bench = make_workbench(catalog, settings)
    if listener is None:
        fold_all(bench)
        return
    from capmix.view.connections import run_server

    if not settings.read_only:
        _fold_touched(bench)
    token = secrets.token_urlsafe(24)
    gathered = partial(gather, catalog, bench.cache.scorer, None, settings.results)
    app = make_app(bench, gathered, token)
    on_address(f"http://{HOST}:{listener.getsockname()[1]}/?token={token}")
    try:
        run_server(app, listener)
    finally:
        if not settings.read_only:
            _fold_touched(bench)


def fold_all(bench: Workbench) -> None:
    """Write the parts of all shards."""
    if not bench.journal.lines:
        log.info("view: no edits yet")
        return
    found = bench.fold(
        everything=True, around=lambda shards: progress("edits", "shard", work=shards)
    )
    log.info("view: %s", found.line())


def _fold_touched(bench: Workbench) -> None:
    """Write the parts of edited shards; on failure, log that the edits remain in the journal."""
    try:
        found = bench.fold()
    except (UserError, OSError) as error:
        log.warning("view: edits are kept in the journal %s; %s", bench.journal.path, error)
        return
    if found.written or found.no_sample:
        log.info("view: edits: %s", found.line())


def usual_port(location: str) -> int:
    """Return the preferred port of a work directory.

    A fixed port lets the browser keep unsaved texts and the last place, which it stores per host
    and port.
    """
    return 49152 + int(text_digest(location), 16) % 16384


def _listen_anywhere(location: str) -> socket.socket:
    try:
        return _listen(usual_port(location))
    except UserError:
        return _listen(0)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # connections made before the server runs have to wait
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"--port {port}: {error}; choose another, or 0 for any free one") from error
    return listener


class _Lazy:
    """The report's pages, which require reading the whole pool.

    They are created on the first request, and again after parts have been written.
    """

    def __init__(self, make: Callable[[], ReportPages]):
        self._make, self._lock = make, Lock()
        self._made: ReportPages | None = None

    def __call__(self) -> ReportPages:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def forget(self) -> None:
        with self._lock:
            self._made = None


def make_app(bench: Workbench, gathered: Callable[[], Any], token: str) -> Any:
    """Return the server as an ASGI application; `gathered` collects the report's data."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    pictures = Pictures(bench.catalog.pool)
    report = _Lazy(lambda: ReportPages(gathered(), token))
    page = _page(bench, token)

    def has_token(found: str) -> bool:
        return secrets.compare_digest(found.encode(), token.encode())

    async def respond(work: Callable[[], Any], answer: Callable[[Any], Response]) -> Response:
        """Run `work` in a thread and build the response; errors are plain text for HTML pages."""
        try:
            response = answer(await run_in_threadpool(work))
            response.headers.update(HEADERS)
            return response
        except KeyError as error:
            words, status = f"not found: {error.args[0]}", 404
        except UserError as error:
            status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 409)
            words = str(error)
        except OSError as error:
            log.warning("view: %s", error)
            words, status = f"storage error: {error}", 503
        if answer is HTMLResponse:
            return PlainTextResponse(words, status, HEADERS)
        return refused(words, status)

    def refused(words: str, status: int) -> Response:
        return JSONResponse({"error": words}, status, HEADERS)

    def get_route(
        path: str, work: Callable[..., Any], answer: Callable[[Any], Response], *names: str
    ) -> Route:
        """Return a read-only route; `work` receives the query's `names`, or the query if none."""

        async def handler(request: Request) -> Response:
            if not has_token(
                request.headers.get(TOKEN_HEADER) or request.query_params.get("token", "")
            ):
                return PlainTextResponse(
                    "the token is missing; open the URL that capmix view printed", 403
                )
            asked = request.query_params
            values = [asked.get(name, "") for name in names] if names else [asked]
            return await respond(partial(work, *values), answer)

        return Route(path, handler, methods=["GET"])

    def post_route(path: str, work: Callable[[Mapping[str, Any]], Any]) -> Route:
        """Return a POST route for changes; other web pages cannot make a browser call it."""

        async def handler(request: Request) -> Response:
            if not has_token(request.headers.get(TOKEN_HEADER, "")):
                return refused("the token is missing; open the URL that capmix view printed", 403)
            origin = request.headers.get("origin")
            if origin is not None and origin != f"http://{request.headers.get('host')}":
                return refused("changes are not allowed from other origins", 403)
            if request.headers.get("content-type", "").partition(";")[0] != "application/json":
                return refused("expected JSON", 415)
            body = b""
            async for piece in request.stream():
                body += piece
                if len(body) > MOST_BODY:
                    return refused(f"the request exceeds {MOST_BODY:,} bytes", 413)
            try:
                value = parse_object(body)
            except ValueError as error:
                return refused(f"expected JSON: {error}", 400)
            return await respond(partial(work, value), JSONResponse)

        return Route(path, handler, methods=["POST"])

    def script(text: str) -> Response:
        return Response(text, media_type="text/javascript")

    def style(text: str) -> Response:
        return Response(text, media_type="text/css")

    def webp(data: bytes) -> Response:
        return Response(data, media_type=TYPE)

    def samples(found: tuple[list[dict[str, Any]], int]) -> Response:
        return JSONResponse({"samples": found[0], "of": found[1]})

    def thumbnail(shard: str, row: str) -> bytes:
        texts = bench.cache.read(bench.shard(shard))
        number = _number(row)
        if not 0 <= number < len(texts):
            raise UnknownError(f"no sample {row!r} in shard {shard}")
        return pictures.thumbnail(bench.shard(shard), texts.table["key"], number)

    def saved(asked: Mapping[str, Any]) -> dict[str, Any]:
        report.forget()
        return bench.save(asked.get("everything") is True)

    edits = _Edits(bench)
    routes = [
        get_route("/", lambda _: page, HTMLResponse),
        get_route("/page.js", lambda _: _resource("page.js"), script),
        get_route("/page.css", lambda _: _resource("page.css"), style),
        get_route("/api/pool", lambda _: bench.pool() | bench.about(), JSONResponse),
        get_route("/api/about", lambda _: bench.about(), JSONResponse),
        get_route("/api/samples", partial(_listed, bench), JSONResponse),
        get_route("/api/sample", bench.sample, JSONResponse, "shard", "key"),
        get_route("/api/shard", bench.place, JSONResponse, "name", "number"),
        get_route(
            "/api/find",
            lambda shard, key, scope: bench.find(shard, key, scope == "pool"),
            JSONResponse, "shard", "key", "scope",
        ),
        get_route("/thumbnail", thumbnail, webp, "shard", "row"),
        get_route(
            "/picture",
            lambda shard, key: pictures.large(bench.shard(shard), key),
            webp, "shard", "key",
        ),
        post_route("/api/act", edits.act),
        post_route("/api/undo", edits.undo),
        post_route("/api/preview", edits.preview),
        post_route("/api/replace", edits.replace),
        post_route("/api/save", saved),
        get_route("/report", lambda _: report().page, HTMLResponse),
        get_route("/rows", lambda shard: report().rows(shard), samples, "shard"),
        get_route(
            "/decisions",
            lambda subset, shard: report().decisions(subset, shard),
            JSONResponse, "subset", "shard",
        ),
        get_route(
            "/image",
            lambda shard, key, uid: report().image(shard, key, uid),
            webp, "shard", "key", "uid",
        ),
    ]  # fmt: skip
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


class _Edits:
    """Requests that change something, or preview a change."""

    def __init__(self, bench: Workbench):
        self.bench = bench

    def act(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        seen = asked.get("seen")
        if not isinstance(seen, int) or seen < 0:
            raise BadRequestError("seen: expected the version of the displayed sample")
        wanted = asked.get("set")
        if not isinstance(wanted, dict):
            raise BadRequestError("set: expected an object")
        return self.bench.act(_word(asked, "shard"), _word(asked, "uid"), seen, wanted)

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self.bench.undo(asked.get("redo") is True)

    def preview(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self.bench.replacements(_query(asked), _word(asked, "new"))

    def replace(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self.bench.replace(_query(asked), _word(asked, "new"), _word(asked, "digest"))


def _listed(bench: Workbench, asked: Mapping[str, Any]) -> dict[str, Any]:
    start = Start(
        _number(asked.get("number", "0")),
        _number(asked.get("row", "0")),
        asked.get("backwards") == "1",
        _number(asked.get("limit", "60")),
    )
    return bench.listed(_query(asked), start)


def _query(asked: Mapping[str, Any]) -> Query:
    return Query(
        _word(asked, "shard"),
        _word(asked, "find"),
        _word(asked, "within"),
        asked.get("regex") in (True, "1"),
        asked.get("case") in (True, "1"),
        asked.get("word") in (True, "1"),
        _word(asked, "keep") or Query.keep,
        _word(asked, "base") or Query.base,
    )


def _word(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str):
        raise BadRequestError(f"{name}: expected a string")
    return value


def _number(value: Any) -> int:
    text = str(value)
    if not text.removeprefix("-").isdecimal() or len(text) > 12:
        raise BadRequestError(f"{text[:20]!r}: expected a number")
    return int(text)


def _page(bench: Workbench, token: str) -> str:
    pool = bench.catalog.pool.location
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_resource("page.html")).render(
        token=token, pool=pool, short=pool.rstrip("/").rpartition("/")[2] or pool
    )


def _resource(name: str) -> str:
    return (resources.files("capmix.view") / name).read_text("utf-8")
