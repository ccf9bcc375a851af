"""Attacks through a pool and its texts."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Quiet
from null_models import failing_captions
from s3_server import BUCKET, S3
from samples import GOOD, image_bytes, sample_members, tar_bytes

from capmix.cli.main import main
from capmix.pool import BadSample, open_pool
from capmix.pool.sample import MAX_IMAGE_BYTES
from capmix.pool.tar import read_tar
from capmix.workspace import open_workspace

MIB = 2**20


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def packed_tar(name: str, size: int) -> bytes:
    """A gzipped tar with a member of zeros, followed by a valid sample."""
    header = tarfile.TarInfo(name)
    header.size = size
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as stream:
        stream.write(header.tobuf())
        for _ in range(size // MIB):
            stream.write(bytes(MIB))
        stream.write(tar_bytes(GOOD))
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "reasons"), [("a.bin", ["ok"]), ("a.jpg", ["too_many_bytes", "ok"])]
)
def test_a_gzip_bomb_is_walked_in_bounded_memory(name: str, reasons: list[str]) -> None:
    bomb = packed_tar(name, MAX_IMAGE_BYTES + MIB)
    assert len(bomb) < 100_000
    tracemalloc.start()
    found = list(read_tar(io.BytesIO(bomb), "00000"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [s.reason if isinstance(s, BadSample) else "ok" for s in found] == reasons
    assert peak < 16 * MIB


def test_a_parquet_image_over_the_limit_is_one_failed_row(tmp_path: Path) -> None:
    images = [image_bytes(1), bytes(MAX_IMAGE_BYTES + 1), image_bytes(2)]
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(table, tmp_path / "p.parquet", compression="zstd")
    pool = open_pool(str(tmp_path))
    found = list(pool.read(pool.shards[0]))
    reasons = [one.reason if isinstance(one, BadSample) else "ok" for one in found]
    assert reasons == ["ok", "too_many_bytes", "ok"]


LINKS = [
    "good.tar", "../../../../escape.tar", "sub/../../escape.tar", "%2e%2e/inside.tar",
    "..%2f..%2finside.tar", "/etc/escape.tar", "//elsewhere.example/escape.tar",
]  # fmt: skip


class Index(Quiet):
    """An index page that names files outside its folder; every other path is a tar."""

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/pool"):
            page = "".join(f'<a href="{link}">x</a>' for link in LINKS).encode()
            self.answer(200, page, Content_Type="text/html")
        else:
            self.answer(200, tar_bytes(GOOD))

    do_HEAD = do_GET  # noqa: N815


@pytest.mark.parametrize("place", ["http", "s3"])
def test_a_listing_that_climbs_out_of_its_pool_writes_nothing_elsewhere(
    place: str, serving: Callable[..., Any], s3: S3, tmp_path: Path
) -> None:
    if place == "http":
        pool = f"{serving(Index)[0]}/pool"
    else:
        from moto.s3.models import s3_backends

        for link in LINKS:
            s3_backends["123456789012"]["aws"].put_object(
                BUCKET, f"climbing/{link}", tar_bytes(GOOD)
            )
        pool = f"s3://{BUCKET}/climbing"
    folder = tmp_path / "a/b/c/d/work"
    work = open_workspace(pool, str(folder), max_failures=1.0)
    work.index()
    assert not [one.name for one in work.pool.shards if ".." in one.name.split("/")]
    assert "samples/good.parquet" in files(folder)
    assert all(name.startswith("a/b/c/d/work/") for name in files(tmp_path))


class Nobody(Quiet):
    def do_GET(self) -> None:
        self.answer(200, image_bytes(9))

    do_HEAD = do_POST = do_GET  # noqa: N815


def test_a_url_that_stands_in_data_is_never_asked(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    """In JSON fields, in a parquet image that is only a path, in metadata, and in captions."""
    address, asked = serving(Nobody)
    url = f"{address}/secret.jpg"
    private = tmp_path / "private.jpg"
    private.write_bytes(image_bytes(7))
    for folder in ("tars", "images", "metadata"):
        (tmp_path / folder).mkdir()
    members = [m for i in range(2) for m in sample_members(f"k{i}", i, url, url=url, image=url)]
    (tmp_path / "tars/0.tar").write_bytes(tar_bytes(members))
    paths = [url, str(private), f"file://{private}", "good.jpg"]
    data = [None, None, b"", image_bytes(1)]
    images = [{"bytes": d, "path": p} for d, p in zip(data, paths, strict=True)]
    pq.write_table(pa.table({"image": images}), tmp_path / "images/0.parquet")
    table = pa.table({"uid": ["a"], "url": [url], "text": [url]})
    pq.write_table(table, tmp_path / "metadata/0.parquet")
    reasons: dict[str, dict[str, int]] = {}
    for folder in ("tars", "images", "metadata"):
        pool, place = str(tmp_path / folder), str(tmp_path / f"work-{folder}")
        work = open_workspace(pool, place, max_failures=1.0)
        work.mix("raw").summary if folder != "images" else work.index()
        marker = work.store.read_marker("samples/0")
        assert marker is not None
        reasons[folder] = dict(marker.counts.failed)
    assert reasons == {"tars": {}, "images": {"no_image": 3}, "metadata": {}}
    (tmp_path / "c.csv").write_text(f"uid,text\n{0:032x},{url}\n")
    work = open_workspace(str(tmp_path / "tars"), str(tmp_path / "work-tars"))
    work.import_captions(
        [str(tmp_path / "c.csv")], source="web", uid_column="uid", text_column="text"
    )
    work.export("raw", str(tmp_path / "out"), format="jsonl")
    assert asked == []


def test_names_on_a_disk_come_from_uids_and_never_from_keys(tmp_path: Path) -> None:
    """Keys with `..`, absolute paths and Windows paths."""
    members = []
    for i, key in enumerate(["../../climbs", "/etc/absolute", "a/../../b", "C:\\c", "d\\e"]):
        members += sample_members(key, i)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/0.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"))
    work.mix("raw")
    work.export("raw", str(tmp_path / "a/b/files"), format="jsonl")
    work.export("raw", str(tmp_path / "a/b/tars"))
    uids = [f"{i:032x}-0" for i in range(5)]
    images = tmp_path / "a/b/files/images/00000000"
    assert sorted(path.name for path in images.glob("*.jpg")) == [f"{uid}.jpg" for uid in uids]
    with tarfile.open(tmp_path / "a/b/tars/00000000.tar") as archive:
        assert {member.name.partition(".")[0] for member in archive} == set(uids)
    others = [name for name in files(tmp_path) if not name.startswith(("pool/", "w/", "a/b/"))]
    assert others == []


@pytest.mark.parametrize("uid", ["../x", "a/b", "a\n", "a b", "\xe9", "x" * 129, "", None, ".."])
def test_uids_of_metadata_are_letters_digits_and_dashes(uid: str | None, tmp_path: Path) -> None:
    table = pa.table({"uid": ["good", uid], "text": ["a", "b"]})
    (tmp_path / "pool").mkdir()
    pq.write_table(table, tmp_path / "pool/0.parquet")
    work = open_workspace(str(tmp_path / "pool"), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    assert work.store.read_table("samples/0.parquet")["uid"].to_pylist() == ["good", None]


def test_failures_are_printed_without_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In keys, uids, and names of members and shards; also without marks of text direction."""
    members = [("\x1b]0;owned\x07a.x.jpg", image_bytes(1)), *sample_members("b\u202e", 2)]
    members += sample_members("c\x9b2J", 3, uid="\x1b[2J\r\n")
    (tmp_path / "p").mkdir()
    (tmp_path / "p/\x1b[31m.tar").write_bytes(tar_bytes(members))
    work = open_workspace(str(tmp_path / "p"), str(tmp_path / "w"), max_failures=1.0)
    work.index()
    work.run(partial(failing_captions, work.pool, [f"{2:032x}"]))
    capsys.readouterr()
    assert main(["failures", "--work", str(tmp_path / "w")]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 5
    assert all(c.isprintable() or c in "\t\n" for c in captured.out + captured.err)
