"""Pools and work directories on S3 and HTTP: the same commands and bytes, with few requests."""

import http.server
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from counting_captioner import KILLED_MODEL, MODEL, KilledCaptioner, KilledError
from null_models import null_captions, null_scores
from s3_server import BUCKET, S3
from samples import write_pool
from web_server import running

from capmix.cli.main import main
from capmix.engine.settings import EngineSettings
from capmix.errors import UserError
from capmix.pool import open_pool
from capmix.storage.s3 import S3FileSystem
from capmix.storage.store import Store
from capmix.workspace import open_workspace


@pytest.fixture(autouse=True)
def emptied(s3: S3) -> Iterator[None]:
    yield
    s3.faults.clear()
    s3.fails = lambda _: True
    for path in s3.fs.find(BUCKET):
        s3.fs.rm_file(path)


def whole_run(pool: str, work: str, out: str, engine: EngineSettings) -> None:
    opened = open_workspace(pool, work, engine=engine)
    opened.index()
    opened.run(partial(null_captions, opened.pool))
    opened.run(partial(null_scores, opened.pool, opened.store, ["raw", "null"]))
    opened.mix("raw-top", fraction=0.5)
    opened.export("raw-top50", out, samples_per_shard=5)


@pytest.mark.parametrize("workers", [None, pytest.param(2, marks=pytest.mark.slow)])
def test_on_s3_every_part_is_what_it_is_on_a_disk(
    s3: S3, tmp_path: Path, workers: int | None
) -> None:
    pool = write_pool(tmp_path / "pool", shards=3, samples=8)
    s3.fs.put(str(pool), f"{BUCKET}/pool", recursive=True)
    places = [str(pool), str(tmp_path / "work"), str(tmp_path / "out")]
    whole_run(*places, EngineSettings())
    remote = [f"s3://{BUCKET}/{name}" for name in ("pool", "work", "out")]
    whole_run(*remote, EngineSettings(workers=workers))
    compared = 0
    for name in ("work", "out"):
        here = {str(p.relative_to(tmp_path)) for p in (tmp_path / name).rglob("*") if p.is_file()}
        there = {path.removeprefix(f"{BUCKET}/") for path in s3.fs.find(f"{BUCKET}/{name}")}
        # On S3, scores are written as arrays when they are first read.
        here = {path for path in here if "/.arrays/" not in path or path in there}
        assert here == there
        for path in sorted(here):
            # These contain fingerprints of shards, which differ between file systems.
            if not (path.endswith(".json") or "/.arrays/" in path or "/.shards/" in path):
                assert (tmp_path / path).read_bytes() == s3.fs.cat_file(f"{BUCKET}/{path}"), path
                compared += 1
    assert compared > 15


def test_a_second_run_on_s3_makes_nothing_and_reads_no_image(s3: S3, tmp_path: Path) -> None:
    s3.fs.put(str(write_pool(tmp_path / "pool", shards=20, samples=1)), f"{BUCKET}/pool", True)
    work = f"s3://{BUCKET}/work"
    first = open_workspace(f"s3://{BUCKET}/pool", work)
    first.run(partial(null_captions, first.pool))
    s3.requests.clear()
    second = open_workspace(f"s3://{BUCKET}/pool", work)
    second.run(partial(null_captions, second.pool))
    assert not [one for one in s3.requests if one.startswith(("PUT", "GET /bucket/pool/"))]
    listings = [one for one in s3.requests if "list-type" in one]
    assert len(listings) <= 6
    reads = [one for one in s3.requests if one.startswith("GET /bucket/work/.markers/captions/")]
    assert len(reads) == 2 * 20  # the markers, before and for the counts


@pytest.mark.parametrize("count", [3_500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_pool_of_many_shards_is_listed_by_pages(s3: S3, count: int) -> None:
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]
    for number in range(count):
        backend.put_object(BUCKET, f"large/{number:08d}.tar", b"x")
    s3.requests.clear()
    pool = open_pool(f"s3://{BUCKET}/large")
    assert len(pool.shards) == count
    assert pool.shards[7].name == "00000007"
    assert "1 bytes, changed" in pool.shards[7].fingerprint
    assert len(s3.requests) <= count / 1000 + 2  # pages of a thousand
    backend.buckets[BUCKET].keys.clear()


def test_storage_that_fails_for_a_while_costs_nothing_but_time(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    s3.fs.put(str(write_pool(tmp_path / "pool", 2, 4)), f"{BUCKET}/pool", recursive=True)
    work = open_workspace(f"s3://{BUCKET}/pool", f"s3://{BUCKET}/work")
    s3.fails = lambda request: request.startswith("GET /bucket/pool/")
    s3.faults += [500, 503]
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (8, 8)
    assert not s3.faults


@pytest.mark.parametrize("status", [403, 503])
def test_a_marker_that_cannot_be_read_is_not_taken_for_a_missing_one(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Captions can take days: an error response must not cause them to be overwritten."""
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    s3.fs.put(str(write_pool(tmp_path / "pool", 3, 2)), f"{BUCKET}/pool", recursive=True)
    work = open_workspace(f"s3://{BUCKET}/pool", f"s3://{BUCKET}/w[1]")
    work.run(partial(null_captions, work.pool))
    s3.requests.clear()
    s3.fails = lambda request: request.startswith("GET /bucket/w") and "00001.json" in request
    s3.faults += [status]
    if status == 403:
        with pytest.raises(OSError, match="(?i)forbidden|denied"):
            work.run(partial(null_captions, work.pool))
    else:
        (counts,) = work.run(partial(null_captions, work.pool))
        assert (counts.ok, counts.total) == (6, 6)
    assert not s3.faults
    assert not [one for one in s3.requests if one.startswith("PUT /bucket/w") and "captions" in one]


def test_a_shard_that_the_listing_names_but_that_is_gone_is_one_failed_row(
    s3: S3, tmp_path: Path
) -> None:
    s3.fs.put(str(write_pool(tmp_path / "pool", 3, 4)), f"{BUCKET}/pool", recursive=True)
    work = open_workspace(f"s3://{BUCKET}/pool", f"s3://{BUCKET}/work", max_failures=1.0)
    s3.fs.rm(f"{BUCKET}/pool/00001.tar")
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, dict(counts.failed)) == (8, {"unreadable_shard": 1})
    again = open_workspace(f"s3://{BUCKET}/pool", f"s3://{BUCKET}/work")
    (counts,) = again.run(partial(null_captions, again.pool))
    assert (counts.ok, counts.total) == (8, 8)


def test_a_part_that_is_not_written_to_its_end_is_not_there(s3: S3) -> None:
    store = Store(f"s3://{BUCKET}/work")
    with pytest.raises(RuntimeError), store.writing("a/b") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert not store.exists("a/b")
    with store.writing("a/b") as stream:
        stream.write(b"whole")
    assert store.read_bytes("a/b") == b"whole"


@pytest.mark.slow
def test_a_large_file_goes_up_in_pieces_and_appears_whole_or_not_at_all(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    piece = bytes(range(256)) * 2**16
    store = Store(f"s3://{BUCKET}/work")

    def write() -> None:
        with store.writing("large") as stream:
            for _ in range(7):  # 112 MiB
                stream.write(piece)

    s3.fails = lambda request: "partNumber=2" in request
    s3.faults += [403]
    with pytest.raises(UserError, match="cannot write bucket/work/large"):
        write()
    assert not store.exists("large")
    s3.faults.clear()
    write()
    assert store.read_bytes("large") == piece * 7
    assert len([one for one in s3.requests if "partNumber" in one]) >= 4


def test_a_location_that_does_not_exist_or_cannot_be_written_is_named(
    s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "s3://no-such-bucket/x", "--work", "w", "--source", "a"]) == 2
    assert "pool s3://no-such-bucket/x" in capsys.readouterr().err
    with pytest.raises(UserError, match="http is read-only"):
        Store("http://127.0.0.1/x")
    with pytest.raises(UserError, match="protocol 'ftp' is not one of"):
        Store("ftp://127.0.0.1/x")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A folder on a plain web server with an index page."""
    write_pool(tmp_path / "web/pool", shards=3, samples=4)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = partial(Handler, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    with running(server):
        yield f"http://127.0.0.1:{server.server_port}/pool"


@pytest.mark.parametrize("name", ["", "/{00000..00002}.tar"])
def test_a_pool_behind_http_is_read(web: str, name: str, tmp_path: Path) -> None:
    work = open_workspace(web + name, str(tmp_path / "work"))
    assert [shard.name for shard in work.pool.shards] == ["00000", "00001", "00002"]
    (counts,) = work.run(partial(null_captions, work.pool))
    assert (counts.ok, counts.total) == (12, 12)
    again = open_pool(web + name)
    assert again.shards == work.pool.shards


def test_one_file_behind_http_is_a_pool(web: str) -> None:
    assert [shard.name for shard in open_pool(f"{web}/00001.tar").shards] == ["00001"]
    with pytest.raises(UserError, match="pool http"):
        open_pool(f"{web}/nothing.tar")


def test_a_server_that_is_gone_is_one_clear_line(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection error is not an OSError, so it must be caught during a run too."""
    monkeypatch.setattr("capmix.storage.filesystem.FIRST_WAIT", 0.01)
    pool = str(write_pool(tmp_path / "pool", 1, 2))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    assert main(["score", pool, "--work", f"s3://{BUCKET}/gone", "--sources", "raw"]) == 2
    told = capsys.readouterr().err
    assert "capmix: storage error: " in told
    assert "127.0.0.1:9" in told
    S3FileSystem.clear_instance_cache()


def test_on_s3_a_kill_inside_a_shard_costs_the_seconds_since_the_last_object(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capmix.engine.partial.CHUNK_EVERY", 0.0)
    monkeypatch.setattr("capmix.engine.partial.LARGEST_SHARE", 1e9)
    pool, work = write_pool(tmp_path / "pool", shards=1, samples=20), f"s3://{BUCKET}/work"
    monkeypatch.setattr(KilledCaptioner, "left", 3)
    with pytest.raises(KilledError):
        open_workspace(str(pool), work).caption("c", model=KILLED_MODEL)
    left = [path for path in s3.fs.find(f"{BUCKET}/work") if "/.partial/" in path]
    assert [path[-2:] for path in left] == [".0", ".1", ".2"]
    monkeypatch.setattr(KilledCaptioner, "left", 2)
    open_workspace(str(pool), work).caption("c", model=KILLED_MODEL)
    assert [path for path in s3.fs.find(f"{BUCKET}/work") if "/.partial/" in path] == []
    open_workspace(str(pool), str(tmp_path / "whole")).caption("c", model=MODEL)
    part = "captions/c/00000.parquet"
    whole = (tmp_path / "whole" / part).read_bytes()
    assert s3.fs.cat_file(f"{BUCKET}/work/{part}") == whole
