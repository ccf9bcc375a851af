"""Fuzz the readers of tar shards: read_tar, with and without keys, and tar_groups.

Invariants: read_tar yields Samples and BadSamples for any bytes, plain or gzipped, and raises no
error; no member exceeds its bound; keys and uids are safe and unique; streams with short reads give
the same result. tar_groups raises only BrokenTarError. Memory use depends neither on the sizes in
headers nor on the uncompressed size of a gzipped shard.

    python fuzz/shard_reader.py --seconds 600
    python fuzz/shard_reader.py fuzz/found/shard_reader-crash-...
"""

import contextlib
import gzip
import io
import random
import re
import tarfile
import zlib
from collections.abc import Iterator

import atheris
from harness import fuzz

with atheris.instrument_imports(include=["capmix"]):
    from capmix.pool import tar, tar_groups
    from capmix.pool.sample import IMAGE_SUFFIXES, SAFE_UID, BadSample, Sample
    from capmix.pool.tar_members import BLOCK, GZIP

# Small bounds, which inputs of a few kilobytes can exceed.
IMAGE_BOUND, TEXT_BOUND = 2048, 600
tar_groups.MAX_IMAGE_BYTES = IMAGE_BOUND
tar_groups.MAX_TEXT_BYTES = TEXT_BOUND
CHECK_SUM = re.compile(rb"[0-7]{6}[\0 ]{2}")
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


class Slow(io.BytesIO):
    """A stream that cannot seek and returns a few bytes per read."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 700) if size and size > 0 else size)


def check(data: bytes) -> None:
    found = list(tar.read_tar(io.BytesIO(data), "00000"))
    samples = [one for one in found if isinstance(one, Sample)]
    assert len(samples) + sum(isinstance(one, BadSample) for one in found) == len(found)
    assert len({one.uid for one in samples}) == len({one.key for one in samples}) == len(samples)
    for sample in samples:
        assert SAFE_UID.fullmatch(sample.uid)
        assert sample.image == sample.members[sample.suffix]
        assert (sample.text or "").encode() is not None
        for suffix, member in sample.members.items():
            assert len(member) <= (IMAGE_BOUND if suffix in IMAGE_SUFFIXES else TEXT_BOUND)
    assert list(tar.read_tar(Slow(data), "00000")) == found
    list(tar.read_tar(io.BytesIO(data), "00000", keys={one.key for one in found[::2]}))
    with contextlib.suppress(tar_groups.BrokenTarError):
        list(tar_groups.tar_groups(io.BytesIO(data), ("jpg", "txt", "json")))


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Mutate data, while often preserving blocks, checksums and gzip."""
    chance = random.Random(seed)  # noqa: S311
    packed = data.startswith(GZIP) and chance.random() < 0.9
    if packed:
        with contextlib.suppress(zlib.error):
            data = zlib.decompressobj(wbits=31).decompress(data, max_size)
    if len(data) >= BLOCK and chance.random() < 0.7:
        start = chance.randrange(len(data) // BLOCK) * BLOCK
        block = atheris.Mutate(data[start : start + BLOCK], BLOCK).ljust(BLOCK, b"\0")
        data = data[:start] + block + data[start + BLOCK :]
    else:
        data = atheris.Mutate(data, max_size)
    if chance.random() < 0.9:
        data = b"".join(map(summed, (data[i : i + BLOCK] for i in range(0, len(data), BLOCK))))
    return (gzip.compress(data, 1, mtime=0) if packed else data)[:max_size]


def summed(block: bytes) -> bytes:
    """Return a header with a correct checksum; other blocks unchanged."""
    if not CHECK_SUM.fullmatch(block[148:156]):
        return block
    total = sum(block) - sum(block[148:156]) + 8 * 32
    return block[:148] + b"%06o\0 " % total + block[156:]


def seeds() -> Iterator[bytes]:
    yield from (b"", b"<!doctype html><title>Not found</title>", bytes(2 * BLOCK))
    long = "/".join(["folder"] * 20)
    record = b'{"uid": "0a", "caption": "a \\ud800 text", "width": [1, 2.5, null]}'
    sample = [("1.jpg", b"\xff\xd8image"), ("1.json", record), ("1.txt", "café".encode())]
    bad = [("a.b.png", b""), ("a.png", b"1"), ("a.jpeg", b"2"), ("1.webp", b"3"), ("1.cls", b"7")]
    for form in FORMS:
        whole = tar_bytes([*sample, (f"{long}.webp", b"RIFF"), *bad], form)
        yield from (whole, whole[:-700], gzip.compress(whole, mtime=0), tar_bytes(sample, form))
    old = tar_bytes(sample, tarfile.USTAR_FORMAT).replace(b"ustar\x0000", bytes(8))
    yield b"".join(summed(old[i : i + BLOCK]) for i in range(0, len(old), BLOCK))
    yield tar_bytes([("1.jpg", b"x" * 2049), ("1.txt", b"x" * 601), ("2.jpg", b"x" * 2048)], 0)
    yield gzip.compress(whole[:BLOCK], mtime=0) + gzip.compress(whole[BLOCK:], mtime=0)


def tar_bytes(members: list[tuple[str, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            # PAX writes a fractional mtime as a record, like a size or path that does not fit.
            info.size, info.mtime = len(data), 0.5
            archive.addfile(info, io.BytesIO(data))
    whole = out.getvalue().rstrip(b"\0")
    return whole + bytes(-len(whole) % BLOCK + 2 * BLOCK)


if __name__ == "__main__":
    fuzz(__doc__, check, seeds(), max_bytes=16_384, custom_mutator=mutate)
