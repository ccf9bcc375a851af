"""Megabytes per second of writing a subset as tars, beside a plain copy of the same bytes.

    python benchmarks/export.py [SAMPLES]

A pool in DataComp's form (images of 50 kB that do not compress, json of 1 kB, PAX headers) and a
subset of all of it. The copy is of capmix's own output, file by file, written through to the disk
as capmix does; the plain rewrite reads with tarfile and adds the same members with tarfile.
"""

import io
import json
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from capmix.engine.local import cores
from capmix.workspace import Workspace, open_workspace

PER_SHARD = 5_000
IMAGE_BYTES = 50_000
ROUNDS = 3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_pool(folder / "pool", count)
        work = open_workspace(str(folder / "pool"), str(folder / "work"))
        work.mix("raw")
        ways: dict[str, Callable[[Path], None]] = {
            "capmix": lambda out: _capmix(work, out, cores()),
            "capmix, one process": lambda out: _capmix(work, out, 1),
            "plain copy": lambda out: _copy(folder / "capmix", out),
            "plain tarfile rewrite": lambda out: _rewrite(folder / "pool", out),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                out = folder / name
                shutil.rmtree(out, ignore_errors=True)
                os.sync()
                started = time.perf_counter()
                way(out)
                seconds[name].append(time.perf_counter() - started)
        size = sum(f.stat().st_size for f in (folder / "capmix").glob("*.tar")) / 1e6
    copied = statistics.median(seconds["plain copy"])
    for name, found in seconds.items():
        middle = statistics.median(found)
        rates = f"{size / middle:6.0f} MB/s  {count / middle:8,.0f} samples/s"
        print(f"{name:<24} {middle:6.1f} s  {rates}  {copied / middle:5.2f} x the copy")


def _capmix(work: Workspace, out: Path, workers: int) -> None:
    work = work.using(workers=workers)
    work.export("raw", str(out), samples_per_shard=PER_SHARD)


def _copy(source: Path, out: Path) -> None:
    out.mkdir()
    for path in sorted(source.glob("*.tar")):
        with path.open("rb") as here, (out / path.name).open("wb") as there:
            shutil.copyfileobj(here, there, 1 << 20)
            there.flush()
            os.fsync(there.fileno())


def _rewrite(pool: Path, out: Path) -> None:
    out.mkdir()
    for path in sorted(pool.glob("*.tar")):
        with (
            tarfile.open(path, "r|") as here,
            (out / path.name).open("wb") as stream,
            tarfile.open(fileobj=stream, mode="w") as there,
        ):
            for member in here:
                content = here.extractfile(member)
                data = content.read() if content else b""
                if member.name.endswith(".json"):
                    data = json.dumps(json.loads(data) | {"caption_raw": "a text"}).encode()
                info = tarfile.TarInfo(member.name)
                info.size = len(data)
                there.addfile(info, io.BytesIO(data))
            there.close()
            stream.flush()
            os.fsync(stream.fileno())


def _write_pool(folder: Path, count: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    head = io.BytesIO()
    Image.new("RGB", (512, 384)).save(head, "JPEG")
    for shard in range(count // PER_SHARD):
        with tarfile.open(folder / f"{shard:08d}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                key, uid = f"{number:012d}", draw.bytes(16).hex()
                about = {"uid": uid, "caption": "a text", "exif": "x" * 900, "width": 512}
                # Only the size in its head is read; what follows stands for the pixels.
                image = head.getvalue() + draw.bytes(IMAGE_BYTES - len(head.getvalue()))
                for suffix, data in (
                    ("jpg", image),
                    ("json", json.dumps(about).encode()),
                    ("txt", b"a text"),
                ):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size, info.mtime = len(data), 0.5
                    archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
