"""CPU time and MB/s of S3 access by capmix (obstore) and by s3fs, with a server on loopback.

    python benchmarks/object_storage.py [--server small|moto] [--rounds 3]

Clients alternate, each in a separate process with new connections. CPU seconds (user + system, all
threads) are those of the client's process, without the server's. The server `small` implements only
the needed part of S3 and does not check signatures, so that it is not the bottleneck; use `moto` to
check against an independent implementation of S3 (with fewer and smaller objects, as it is slow).

`obstore, own API` does not use fsspec: the best that can be achieved. `read in a forked child` is
what data loaders of `capmix train` do if their parent process has not read before; a child that
hangs is an ERROR.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import re
import resource
import signal
import statistics
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import responses
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np

BUCKET = "bucket"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",  # object_store requires this for http:// URLs
}
PIECE = 1 << 20
LISTED = 1000  # keys per page
FAILS_EVERY = 20
FAULTS = (500, 503)
HANGS_AFTER = 5  # seconds


@dataclass(frozen=True)
class Sizes:
    """Number and size of the objects."""

    tar_images: int = 4_000
    image_bytes: int = 50_000
    keys: int = 100_000
    markers: int = 2_000
    parts: int = 500
    part_bytes: int = 100_000


@dataclass(frozen=True)
class Measured:
    """The cost of one run. `amount` is in MB or in thousands of keys; `digest` identifies the
    result."""

    seconds: float
    cpu: float
    amount: float
    digest: str = ""
    error: str = ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=["small", "moto"], default="small")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    small = options.server == "small"
    sizes = Sizes() if small else Sizes(tar_images=400, keys=5_000, markers=300, parts=100)
    with served(options.server, sizes) as url:
        os.environ.update(SETTINGS | {"AWS_ENDPOINT_URL": url})
        for name, work in WORKS.items():
            _compare(name, work, sizes, options.rounds, "")
        if small:
            for name in ("tar, pool reader", "read markers", "write parts"):
                _compare(name, WORKS[name], sizes, options.rounds, url)


def _compare(name: str, work: str, sizes: Sizes, rounds: int, faults_of: str) -> None:
    """Print the medians of each client.

    With `faults_of`, the server at this address fails every FAILS_EVERY-th request.
    """
    print(f"{name}{f', every {FAILS_EVERY}th request fails' if faults_of else ''}", flush=True)
    found: dict[str, list[Measured]] = {client: [] for client in CLIENTS}
    failed: dict[str, int] = {}
    for _ in range(rounds):
        for client in CLIENTS:
            if faults_of:
                _requested(faults_of, f"/-/faults/{FAILS_EVERY}")
            found[client].append(_alone(client, work, sizes))
            if faults_of:
                failed[client] = int(_requested(faults_of, "/-/faults/0"))
    unit = "k keys/s" if "list" in name or "markers" in name else "MB/s"
    base = statistics.median(one.cpu for one in found["s3fs"]) or 1.0
    for client, all_of in found.items():
        cpu, seconds, amount = (
            statistics.median(getattr(one, what) for one in all_of)
            for what in ("cpu", "seconds", "amount")
        )
        error = next((one.error for one in all_of if one.error), "")
        wrong = {one.digest for one in all_of} != {found["s3fs"][0].digest}
        notes = [f"{failed[client]} failed requests"] if faults_of else []
        notes += [f"ERROR {error}"] if error else ["DIFFERENT RESULT"] if wrong else []
        print(
            f"  {client:<18} {cpu:7.2f} s CPU  {cpu / base:5.2f} x s3fs  {seconds:7.2f} s wall  "
            f"{amount / seconds:8.1f} {unit}  {'; '.join(notes)}",
            flush=True,
        )


def _requested(url: str, path: str) -> str:
    with urllib.request.urlopen(url + path) as answer:  # noqa: S310
        return str(answer.read().decode())


def _alone(client: str, work: str, sizes: Sizes) -> Measured:
    """Run the work in a new process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(there, client, work, sizes))
    process.start()
    there.close()
    measured: Measured = here.recv()
    process.join()
    return measured


def _measure(pipe: Connection, client: str, work: str, sizes: Sizes) -> None:
    way = _prepared(client, work)
    used, started = _cpu(), time.perf_counter()
    try:
        amount, digest = way(sizes)
        measured = Measured(time.perf_counter() - started, _cpu() - used, amount, digest)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"[:200]
        measured = Measured(time.perf_counter() - started, _cpu() - used, 0, error=what)
    pipe.send(measured)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


Run = Callable[[Sizes], tuple[float, str]]


def _prepared(client: str, work: str) -> Run:
    """Import the client's libraries and register s3://; return the work to time."""
    if client == "obstore, own API":
        import obstore  # noqa: F401

        return OWN[work]
    import capmix.pool.pool
    import capmix.storage.s3
    import capmix.storage.store  # noqa: F401

    if client == "s3fs":
        _use_s3fs()
    return BY_FSSPEC[work]


def _use_s3fs() -> None:
    import s3fs

    import capmix.storage.s3

    class ByS3fs(s3fs.S3FileSystem):  # type: ignore[misc]
        """s3fs without cached listings, as capmix uses it."""

        def __init__(self) -> None:
            super().__init__(use_listings_cache=False)

    capmix.storage.s3.S3FileSystem = ByS3fs  # type: ignore[misc]


def _file_system() -> Any:
    from capmix.storage.filesystem import open_file_system

    return open_file_system(f"s3://{BUCKET}", "pool")[0]


# The work through fsspec, as in capmix, with the registered s3:// file system.


def _tar_by_pool(sizes: Sizes) -> tuple[float, str]:
    from capmix.pool.pool import open_pool
    from capmix.pool.sample import Sample

    pool = open_pool(f"s3://{BUCKET}/tars")
    state, total = hashlib.sha256(), 0
    for sample in pool.read(pool.shards[0]):
        assert isinstance(sample, Sample), sample
        state.update(sample.image[:64])
        total += len(sample.image)
    return total / 1e6, state.hexdigest()


def _tar_plain(sizes: Sizes) -> tuple[float, str]:
    fs = _file_system()
    total, last = 0, b""
    with fs.open(f"{BUCKET}/tars/00000.tar", "rb") as stream:
        while data := stream.read(PIECE):
            total, last = total + len(data), data[-64:]
    return total / 1e6, f"{total} {last.hex()}"


def _tar_whole(sizes: Sizes) -> tuple[float, str]:
    fs = _file_system()
    data = fs.cat_file(f"{BUCKET}/tars/00000.tar")
    return len(data) / 1e6, f"{len(data)} {data[-64:].hex()}"


def _pool_listed(sizes: Sizes) -> tuple[float, str]:
    from capmix.pool.pool import open_pool

    shards = open_pool(f"s3://{BUCKET}/keys").shards
    return len(shards) / 1e3, f"{len(shards)} {shards[-1].name}"


def _store_listed(sizes: Sizes) -> tuple[float, str]:
    from capmix.storage.store import Store

    store = Store(f"s3://{BUCKET}/keys")
    with store.listed([""]):
        size = store.size(f"{sizes.keys - 1:08d}.tar")
    return sizes.keys / 1e3, f"{size}"


def _markers_read(sizes: Sizes) -> tuple[float, str]:
    from capmix.storage.store import Store

    store = Store(f"s3://{BUCKET}/work")
    with store.listed(["captions/a"]):
        names = [f".markers/captions/a/{number:05d}.json" for number in range(sizes.markers)]
        found = [store.read_bytes(name) for name in names]
    digest = hashlib.sha256(b"".join(found)).hexdigest()
    return sizes.markers / 1e3, digest


def _parts_written(sizes: Sizes) -> tuple[float, str]:
    from capmix.storage.store import Store

    store = Store(f"s3://{BUCKET}/written")
    data = bytes(range(250)) * (sizes.part_bytes // 250)
    for number in range(sizes.parts):
        store.write_bytes(f"captions/{number:05d}.parquet", data)
    assert store.read_bytes(f"captions/{sizes.parts - 1:05d}.parquet") == data
    assert len(store.files("captions")) == sizes.parts
    return sizes.parts * len(data) / 1e6, f"{sizes.parts}"


def _forked(sizes: Sizes) -> tuple[float, str]:
    fs = _file_system()
    path = f"{BUCKET}/work/.markers/captions/a/00000.json"
    # Same as Pool.reopened.
    _in_a_fork(lambda: type(fs)(*fs.storage_args, **fs.storage_options).cat_file(path))
    return 0.001, ""


def _in_a_fork(read: Callable[[], object]) -> None:
    """Call `read` in a forked child. Raises RuntimeError after HANGS_AFTER s without a result."""
    child = os.fork()
    if not child:
        signal.alarm(HANGS_AFTER)
        read()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the forked child hangs: no result within {HANGS_AFTER} s")


# The same work with obstore's own API.


def _store_of_bucket() -> Any:
    from obstore.store import S3Store

    return S3Store(BUCKET)


def _own_tar(sizes: Sizes) -> tuple[float, str]:
    import obstore

    total, last = 0, b""
    for data in obstore.get(_store_of_bucket(), "tars/00000.tar").stream(min_chunk_size=PIECE):
        total, last = total + len(data), bytes(data)[-64:]
    return total / 1e6, f"{total} {last.hex()}"


def _own_tar_whole(sizes: Sizes) -> tuple[float, str]:
    import obstore

    data = obstore.get(_store_of_bucket(), "tars/00000.tar").bytes()
    return len(data) / 1e6, f"{len(data)} {bytes(data)[-64:].hex()}"


def _own_pool(sizes: Sizes) -> tuple[float, str]:
    """Read with the tar reader of pools, over a stream of pieces."""
    import obstore

    from capmix.pool.sample import Sample
    from capmix.pool.tar import read_tar

    class Pieces(io.RawIOBase):
        def __init__(self, pieces: Iterator[Any]):
            self._pieces, self._rest = pieces, memoryview(b"")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
            size = min(len(buffer), len(self._rest))
            buffer[:size], self._rest = self._rest[:size], self._rest[size:]
            return size

    pieces = obstore.get(_store_of_bucket(), "tars/00000.tar").stream(min_chunk_size=PIECE)
    state, total = hashlib.sha256(), 0
    for sample in read_tar(io.BufferedReader(Pieces(iter(pieces)), PIECE), "00000"):  # type: ignore[arg-type]
        assert isinstance(sample, Sample), sample
        state.update(sample.image[:64])
        total += len(sample.image)
    return total / 1e6, state.hexdigest()


def _own_listed(sizes: Sizes) -> tuple[float, str]:
    import obstore

    found = [one["path"] for page in obstore.list(_store_of_bucket(), "keys") for one in page]
    return len(found) / 1e3, f"{len(found)} {found[-1][5:-4]}"


def _own_listed_sizes(sizes: Sizes) -> tuple[float, str]:
    import obstore

    found = {
        one["path"]: one["size"]
        for page in obstore.list(_store_of_bucket(), "keys")
        for one in page
    }
    return len(found) / 1e3, f"{found[f'keys/{sizes.keys - 1:08d}.tar']}"


def _own_markers(sizes: Sizes) -> tuple[float, str]:
    from concurrent.futures import ThreadPoolExecutor

    import obstore

    store = _store_of_bucket()
    names = [f"work/.markers/captions/a/{number:05d}.json" for number in range(sizes.markers)]
    with ThreadPoolExecutor(32) as threads:
        found = list(threads.map(lambda name: bytes(obstore.get(store, name).bytes()), names))
    return sizes.markers / 1e3, hashlib.sha256(b"".join(found)).hexdigest()


def _own_parts(sizes: Sizes) -> tuple[float, str]:
    import obstore

    store = _store_of_bucket()
    data = bytes(range(250)) * (sizes.part_bytes // 250)
    for number in range(sizes.parts):
        obstore.put(store, f"written/captions/{number:05d}.parquet", data)
    return sizes.parts * len(data) / 1e6, f"{sizes.parts}"


def _own_forked(sizes: Sizes) -> tuple[float, str]:
    import obstore

    path = "work/.markers/captions/a/00000.json"
    _in_a_fork(lambda: obstore.get(_store_of_bucket(), path).bytes())
    return 0.001, ""


CLIENTS = ("s3fs", "capmix", "obstore, own API")
WORKS = {
    "tar, pool reader": "pool",
    "tar, 1 MiB at a time": "tar",
    "tar, whole": "whole",
    "list a pool": "listed",
    "list a work directory": "sizes",
    "read markers": "markers",
    "write parts": "parts",
    "read in a forked child": "forked",
}
BY_FSSPEC: dict[str, Run] = {
    "pool": _tar_by_pool,
    "tar": _tar_plain,
    "whole": _tar_whole,
    "listed": _pool_listed,
    "sizes": _store_listed,
    "markers": _markers_read,
    "parts": _parts_written,
    "forked": _forked,
}
OWN: dict[str, Run] = {
    "pool": _own_pool,
    "tar": _own_tar,
    "whole": _own_tar_whole,
    "listed": _own_listed,
    "sizes": _own_listed_sizes,
    "markers": _own_markers,
    "parts": _own_parts,
    "forked": _own_forked,
}


# The servers, each in a separate process.


@contextmanager
def served(kind: str, sizes: Sizes) -> Iterator[str]:
    """Start a server, fill it with the objects to read, and yield its address."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    target = _serve_small if kind == "small" else _serve_moto
    process = spawn.Process(target=target, args=(there, sizes), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def _objects(sizes: Sizes) -> dict[str, bytes]:
    found = {"tars/00000.tar": _tar(sizes)}
    found |= {f"keys/{number:08d}.tar": b"x" for number in range(sizes.keys)}
    for number in range(sizes.markers):
        marker = f'{{"number": {number}, "text": "{"x" * 900}"}}'.encode()
        found[f"work/.markers/captions/a/{number:05d}.json"] = marker
        found[f"work/captions/a/{number:05d}.parquet"] = b"x"
    return found


def _tar(sizes: Sizes) -> bytes:
    draw, stream = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(sizes.tar_images):
            files = {"jpg": draw.bytes(sizes.image_bytes), "txt": b"a text", "json": b'{"a": 1}'}
            for suffix, data in files.items():
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _serve_moto(pipe: Connection, sizes: Sizes) -> None:
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    port = server.get_host_and_port()[1]
    os.environ.update(SETTINGS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    from moto.s3.models import s3_backends

    for key, data in _objects(sizes).items():
        s3_backends["123456789012"]["aws"].put_object(BUCKET, key, data)
    pipe.send(port)
    while True:
        time.sleep(1)


@dataclass
class Small:
    """Serves the objects of one bucket. Every `fails_every`-th request fails with 500 or 503,
    alternating."""

    objects: dict[str, bytes]
    pages: dict[str, bytes] = field(default_factory=dict)
    fails_every: int = 0
    seen: int = 0
    failed: int = 0

    def answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes | memoryview]:
        if path.startswith("/-/faults/"):
            failed = str(self.failed).encode()
            self.fails_every, self.seen, self.failed = int(path.rpartition("/")[2]), 0, 0
            return 200, {}, failed
        self.seen += 1
        if self.fails_every and self.seen % self.fails_every == 0:
            self.failed += 1
            return FAULTS[self.failed % len(FAULTS)], {}, b""
        key = unquote(path).removeprefix(f"/{BUCKET}").lstrip("/")
        if method == "GET" and not key:
            return 200, {"Content-Type": "application/xml"}, self._page(query)
        if method == "PUT":
            self.objects[key] = _without_chunks(body, headers)
            return 200, {"ETag": '"e"'}, b""
        if key not in self.objects:
            return (
                404,
                {"Content-Type": "application/xml"},
                b"<Error><Code>NoSuchKey</Code></Error>",
            )
        return self._read(key, headers.get("range", ""))

    def _read(self, key: str, span: str) -> tuple[int, dict[str, str], memoryview]:
        data = memoryview(self.objects[key])
        about = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
            first = int(found[1])
            last = min(int(found[2] or len(data)), len(data) - 1)
            about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return 206, about, data[first : last + 1]
        return 200, about, data

    def _page(self, query: dict[str, str]) -> bytes:
        """Return a page of keys, from a cache, as creating it should not be measured."""
        asked = str(sorted(query.items()))
        if query.get("prefix", "").startswith("written") or asked not in self.pages:
            self.pages[asked] = self._new_page(query)
        return self.pages[asked]

    def _new_page(self, query: dict[str, str]) -> bytes:
        prefix, start = query.get("prefix", ""), int(query.get("continuation-token", 0))
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        folders: list[str] = []
        if query.get("delimiter"):
            below = [key for key in keys if "/" in key[len(prefix) :]]
            folders = sorted({prefix + key[len(prefix) :].split("/")[0] + "/" for key in below})
            keys = [key for key in keys if "/" not in key[len(prefix) :]]
        page = keys[start : start + min(LISTED, int(query.get("max-keys", LISTED)))]
        end = start + len(page)
        entries = "".join(
            f"<Contents><Key>{quote(key)}</Key><LastModified>2026-01-01T00:00:00.000Z"
            f"</LastModified><ETag>&quot;e&quot;</ETag><Size>{len(self.objects[key])}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        entries += "".join(
            f"<CommonPrefixes><Prefix>{quote(one)}</Prefix></CommonPrefixes>" for one in folders
        )
        more = end < len(keys)
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com'
            f'/doc/2006-03-01/"><Name>{BUCKET}</Name><Prefix>{quote(prefix)}</Prefix><MaxKeys>'
            f"{LISTED}</MaxKeys><KeyCount>{len(page)}</KeyCount><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()


def _without_chunks(body: bytes, headers: dict[str, str]) -> bytes:
    """Decode an `aws-chunked` body, which has the length in hexadecimal before each piece."""
    if "aws-chunked" not in headers.get("content-encoding", ""):
        return body
    found, stream = b"", io.BytesIO(body)
    while size := int(stream.readline().split(b";")[0], 16):
        found += stream.read(size)
        stream.read(2)
    return found


def _serve_small(pipe: Connection, sizes: Sizes) -> None:
    import asyncio

    small = Small(_objects(sizes))

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers: dict[str, str] = {}
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.strip().lower()] = value.strip()
                if headers.get("expect"):
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                where = urlsplit(target)
                asked = parse_qs(where.query, keep_blank_values=True)
                query = {key: values[0] for key, values in asked.items()}
                status, about, data = small.answer(method, where.path, query, headers, body)
                about["Content-Length"] = str(len(data))
                lines = [f"{key}: {value}\r\n" for key, value in about.items()]
                head = f"HTTP/1.1 {status} {responses[status]}\r\n{''.join(lines)}\r\n"
                writer.write(head.encode())
                if method != "HEAD":
                    for start in range(0, len(data), PIECE):
                        writer.write(data[start : start + PIECE])
                        await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=PIECE)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
