"""Minimized inputs that the fuzzers in fuzz/ found, or that reach deep code."""

import contextlib
import gzip
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from samples import sample_members, tar_bytes

from capmix.errors import UserError
from capmix.mix.expression import parse
from capmix.mix.recipe import load_recipe
from capmix.models.images import BadImageError, decode_as_stored, decode_image
from capmix.pipeline.config import load_pipeline
from capmix.pool.sample import BadSample, Sample
from capmix.pool.tar import read_tar
from capmix.pool.tar_groups import BrokenTarError, tar_groups

HUGE = b"\x80" + b"\xff" * 11  # a size of 88 bits, in GNU tar's format for large sizes
NONE = b"%011o\0" % 0
END = bytes(1024)


class Slow(io.BytesIO):
    """A stream that cannot seek and returns a few bytes per read."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 700) if size and size > 0 else size)


def header(name: bytes, size: bytes = NONE, kind: bytes = b"0") -> bytes:
    block = (name.ljust(124, b"\0") + size + b" " * 20 + kind).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def extended(record: bytes, name: bytes) -> bytes:
    """Return an empty member after a PAX header with one record."""
    size = len(record) + 3
    record = b"%d %s\n" % (size + len(str(size)) - 1, record)
    return header(b"x", b"%011o\0" % len(record), b"x") + record.ljust(512, b"\0") + header(name)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (header(b"a.jpg") + END, ["ok"]),
        (header(b"a.txt", HUGE) + END, ["truncated_shard"]),
        (header(b"a.bin", HUGE) + END, ["truncated_shard"]),
        (header(b"a.jpg") + header(b"b", HUGE) + END, ["ok", "truncated_shard"]),
        (extended(b"size=" + b"9" * 30, b"a.bin") + END, ["truncated_shard"]),
        (extended(b"size=" + b"9" * 30, b"a.jpg") + END, ["truncated_shard"]),
        (extended(b"size=-1", b"a.jpg") + END, ["not_a_tar"]),
        (extended(b"path=", b"a.jpg") + END, ["ok"]),
        (header(b"a.jpg", b"-0000000001\0") + END, ["not_a_tar"]),
        (header(b"a.jpg")[:511] + b"x" + END, ["not_a_tar"]),
        (header(b"a", b"%011o\0" % (1 << 17), b"L") + END, ["not_a_tar"]),
        (b"\x1f\x8b" + END, ["not_a_tar"]),
        (gzip.compress(END, mtime=0), []),
        (gzip.compress(header(b"a.jpg") + END, mtime=0)[:-9], ["ok"]),
    ],
)
def test_no_header_makes_the_shard_reader_raise(data: bytes, expected: list[str]) -> None:
    found = list(read_tar(io.BytesIO(data), "00000"))
    assert [one.reason if isinstance(one, BadSample) else "ok" for one in found] == expected
    assert list(read_tar(Slow(data), "00000")) == found
    with contextlib.suppress(BrokenTarError):
        list(tar_groups(io.BytesIO(data), ("jpg",)))


def test_samples_before_a_fault_in_gzip_are_kept() -> None:
    packed = gzip.compress(tar_bytes(sample_members("a", 1)), mtime=0)
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    assert [one.key for one in read_tar(io.BytesIO(wrong_sum), "00000")][:1] == ["a"]


@pytest.mark.parametrize(
    "record", [b"[" * 5000, b'{"uid": ' + b"[" * 900 + b"]" * 900 + b"}", b"9" * 5000, b"\xff", b""]
)
def test_no_json_makes_the_shard_reader_raise(record: bytes) -> None:
    (found,) = read_tar(io.BytesIO(tar_bytes([("a.jpg", b""), ("a.json", record)])), "00000")
    assert isinstance(found, BadSample)
    assert found.reason in ("bad_json", "bad_uid")


def test_a_caption_of_lone_surrogates_can_be_written() -> None:
    record = json.dumps({"uid": "a", "caption": "a \ud800 text"}).encode()
    (found,) = read_tar(io.BytesIO(tar_bytes([("a.jpg", b""), ("a.json", record)])), "00000")
    assert isinstance(found, Sample)
    assert found.text == "a ? text"


RECIPE = "{name: x, about: y, clauses: [{source: raw, where: %s}]}"
LEVELS = "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 6))
MERGES = "b0: &b0 {x: 1}\n" + "".join(
    f"b{i}: &b{i} {{<<: [*b{i - 1}, *b{i - 1}]}}\n" for i in range(1, 41)
)
ALIASES = f"b0: &b0 [x]\n{LEVELS}"


@pytest.mark.parametrize(
    "text",
    [
        '!!int ""',
        "!!float ''",
        "!!timestamp x",
        "!!bool x",
        "2001-99-99",
        "9" * 5000,
        "[" * 500,
        "&a {base: *a}",
        f"{ALIASES}base: *b5",
        f"{ALIASES}parameters: {{fraction: *b5}}",
        "? 0x" + "f" * 4000 + "\n: 1",
        "{parameters: {1: 2}}",
        '{name: "\\ud800", about: y, clauses: [{source: raw}]}',
        '"\\ud800": 1',
        f"{MERGES}base: {{<<: *b40}}",
        "b: &b {x: 1}\nbase: {<<: [" + "*b, " * 5000 + "*b]}",
    ],
)
def test_faulty_yaml_is_told_in_a_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "faulty.yaml"
    file.write_text(text, "utf-8")
    for load in (load_recipe, load_pipeline):
        with pytest.raises(UserError) as caught:
            load(str(file))
        assert len(str(caught.value)) < 1000


def test_a_recipe_of_a_pipeline_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    recipe = "[" * 6 + "x" + "]" * 6
    file.write_text(f"pool: p\nwork: w\nmix: {{recipes: [{{recipe: {recipe}}}]}}", "utf-8")
    with pytest.raises(UserError):
        load_pipeline(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "1) from samples union select (1",
        "1) from samples; select (1",
        "1 as a, 2",
        "\ud800",
        "x /*",
        "(" * 2000,
        "1" + "+1" * 3000,
        "threshold(threshold(a, 0.5), 0.5)",
        "top(a)",
        "in_list('a b')",
        "not not random() > 0.5",
        # DuckDB checks the whole name, but prints only the part before the zero byte.
        "random\0()",
        "\"getenv\0\"('HOME')",
        "a\0b > 1",
    ],
)
def test_faulty_conditions_are_told(text: str) -> None:
    with pytest.raises(UserError, match=r"^clause 1: "):
        parse(text, "clause 1")


def test_conditions_of_a_recipe_file_are_told(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for condition in ('"\\ud800"', '"random\\0()"', '"1) from samples union select (1"'):
        file.write_text(RECIPE % condition, "utf-8")
        with pytest.raises(UserError):
            parse(load_recipe(str(file)).clauses[0].where, "clause 1")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (head, *chunks)
    )


def jpeg(side: int, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("L", (side, side)).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n", "not_an_image"),
        (png(1, 1), "not_an_image"),
        (png(1, 1, (b"IDAT", b"")), "broken_image"),
        (png(1, 1, (b"IDAT", zlib.compress(b"\5\0\0\0\0"))), "broken_image"),
        (png(1, 1, (b"tRNS", b""), (b"IDAT", zlib.compress(bytes(3)))), "broken_image"),
        (png(0, 1, (b"IDAT", zlib.compress(bytes(5)))), "not_an_image"),
        (png(1 << 31, 1 << 31, (b"IDAT", b"")), "too_many_pixels"),
        # Pillow allocates 12 bytes per row, and 4 GiB for 67 million rows.
        (png(1, 1 << 20, (b"IDAT", b"x")), "too_many_pixels"),
        (jpeg(64)[:2], "not_an_image"),
        (jpeg(64)[:-20], "broken_image"),
        (jpeg(64).replace(b"\0\x40\0\x40", b"\xff\xff\xff\xff"), "too_many_pixels"),
        (b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\xff", "too_many_pixels"),
    ],
)
def test_broken_images_are_named(data: bytes, reason: str) -> None:
    for decode in (decode_image, decode_as_stored):
        with pytest.raises(BadImageError) as caught:
            decode(data)
        assert caught.value.reason == reason


def test_scans_of_a_jpeg_are_bounded() -> None:
    """Decoding a scan of 200 bytes can take as long as decoding all pixels."""
    data = jpeg(4000, progressive=True)
    last = data.rindex(b"\xff\xda")
    assert decode_image(data).size == (4000, 4000)
    with pytest.raises(BadImageError, match="scans"):
        decode_image(data[:-2] + data[last:-2] * 400 + data[-2:])


def test_exif_segments_of_a_jpeg_are_bounded() -> None:
    """Pillow concatenates them one by one, which takes quadratic time."""
    data, segment = jpeg(64), b"\xff\xe1\0\x09Exif\0\0x"
    with pytest.raises(BadImageError, match="segments"):
        decode_image(data[:2] + segment * 3000 + data[2:])


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"\xff\xd8", b"\xff\xe0\0\2"),
        (b"\xff\xd8", b"\xff"),
        (b"\xff\xd8\xff\xd8", b"\0"),
        (b"\x89PNG\r\n\x1a\n", b"\0\0\0\0aaaa" + zlib.crc32(b"aaaa").to_bytes(4, "big")),
    ],
)
def test_pieces_of_an_image_are_bounded(start: bytes, piece: bytes) -> None:
    """Pillow parses each in Python: 64 MiB of them would take 40 seconds."""
    began = time.process_time()
    with pytest.raises(BadImageError, match="bytes that start like (JPEG|PNG): "):
        decode_image(start + piece * (2**24 // len(piece)))
    assert time.process_time() - began < 3


MEASURED = """
import re, sys
from pathlib import Path
from capmix.models.images import decode_image

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

data = sys.stdin.buffer.read()
before = peak()
decode_image(data)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_memory_of_transparency_is_bounded(kind: str) -> None:
    """At most 20 bytes per pixel: 2 GB for the largest accepted image."""
    out = io.BytesIO()
    Image.new("RGBA", (3000, 3000)).save(out, kind, lossless=True)
    run = subprocess.run(
        [sys.executable, "-c", MEASURED], input=out.getvalue(), capture_output=True, check=True
    )
    assert int(run.stdout) < 20 * 3000 * 3000
