"""Time of reading, indexing and exporting a pool of tars, compared with copying it.

    python benchmarks/export.py [--samples N] [--rounds N] [--against SRC]

The pools are in DataComp's format (incompressible images of 12 kB and 50 kB, 1 kB of JSON, PAX
headers); the subset contains all samples. Prints, for every way, microseconds per sample of CPU
time (user and system, including child processes) and of wall time: medians over rounds in which the
ways alternate. Each run of capmix is a separate process that measures after a warm-up, so imports
are excluded:

read     read and parse every sample of every shard
index    the stage of `capmix index`, including writing its parts
export   the export in one process
command  `capmix export --workers` with one process per core, including starting them
copy     copy the exported files
rewrite  read and write the pool with tarfile

`--against` is the `src` folder of another checkout, whose ways alternate with these.
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

PER_SHARD = 2_500
IMAGE_BYTES = (12_000, 50_000)
WAYS = ("read", "index", "export", "command")
HERE = str(Path(__file__).parent.parent / "src")
Cost = tuple[float, float]  # seconds of CPU and of wall time


def main() -> None:
    options = _options()
    if options.way:
        print(*_cost(options.way, Path(options.folder)))
        return
    sources = {"": HERE} | ({"against": options.against} if options.against else {})
    for size in IMAGE_BYTES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _write_pool(folder / "pool", options.samples, size)
            print(f"\n{options.samples:,} samples, images of {size:,} bytes")
            _compare(folder, options.samples, options.rounds, sources)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="SRC", help="the src folder of another checkout")
    parser.add_argument("--way", choices=(*WAYS, "mix"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(folder: Path, samples: int, rounds: int, sources: dict[str, str]) -> None:
    ways: dict[str, Callable[[], Cost]] = {}
    for name, source in sources.items():
        work = folder / f"here {name}".strip()
        work.mkdir()
        (work / "pool").symlink_to(folder / "pool")
        _run("mix", work, source)
        for way in WAYS:
            ways[f"{way} {name}".strip()] = lambda a=way, b=work, c=source: _run(a, b, c)
    out = folder / "here" / "export"
    ways["copy"] = lambda: _measured(lambda: _copy(out, folder / "copy"))
    ways["rewrite"] = lambda: _measured(lambda: _rewrite(folder / "pool", folder / "rewrite"))
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            for one in ("copy", "rewrite"):
                shutil.rmtree(folder / one, ignore_errors=True)
            os.sync()
            found[name].append(way())
    middle = {name: _medians(costs, samples) for name, costs in found.items()}
    print(f"{'':<16} {'CPU us':>8} {'wall us':>8}  share of the other checkout's CPU and wall")
    for name, (cpu, wall) in middle.items():
        other = middle.get(f"{name} against")
        ratio = f"  {cpu / other[0]:6.0%} {wall / other[1]:6.0%}" if other else ""
        print(f"{name:<16} {cpu:8.1f} {wall:8.1f}{ratio}")


def _medians(costs: list[Cost], samples: int) -> tuple[float, float]:
    """Return the median microseconds per sample of CPU and of wall time."""
    cpu, wall = (statistics.median(one) / samples * 1e6 for one in zip(*costs, strict=True))
    return cpu, wall


def _run(way: str, folder: Path, source: str) -> Cost:
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    }
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    cpu, wall = done.stdout.split()[-2:]
    return float(cpu), float(wall)


def _cost(way: str, folder: Path) -> Cost:
    from capmix.engine.local import cores
    from capmix.engine.settings import EngineSettings
    from capmix.engine.stage import run_one
    from capmix.export.export import export
    from capmix.models.index import index_stages
    from capmix.storage.store import Store
    from capmix.workspace import open_workspace

    work = open_workspace(str(folder / "pool"), str(folder / "work"))
    if way == "mix":
        return _measured(lambda: work.mix("raw"))
    first = work.pool.shards[0]
    for _ in work.pool.read(first):
        pass
    if way == "read":
        return _measured(lambda: [sum(1 for _ in work.pool.read(one)) for one in work.pool.shards])
    if way == "index":
        (stage,) = index_stages(work.pool)
        fresh = folder / "index"
        shutil.rmtree(fresh, ignore_errors=True)
        store = Store(str(fresh))
        shards = work.pool.shards
        run_one(stage, first, Store(str(folder / "warm")), lambda _: None)
        return _measured(lambda: [run_one(stage, one, store, lambda _: None) for one in shards])
    out = folder / way
    shutil.rmtree(out, ignore_errors=True)
    if way == "command":
        started = work.using(workers=cores())
        return _measured(lambda: started.export("raw", str(out), samples_per_shard=PER_SHARD))

    def in_process(out: Path) -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        export(work.store, work.pool, "raw", str(out), PER_SHARD, engine=EngineSettings())

    in_process(folder / "warm export")
    shutil.rmtree(folder / "warm export")
    return _measured(lambda: in_process(out))


def _measured(way: Callable[[], object]) -> Cost:
    before, started = _cpu(), time.perf_counter()
    way()
    return _cpu() - before, time.perf_counter() - started


def _cpu() -> float:
    """Return the user and system seconds of this process and of its finished child processes."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


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


def _write_pool(folder: Path, count: int, image_bytes: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    head = io.BytesIO()
    Image.new("RGB", (512, 384)).save(head, "JPEG")
    for shard in range(-(-count // PER_SHARD)):
        numbers = range(shard * PER_SHARD, min(count, (shard + 1) * PER_SHARD))
        with tarfile.open(folder / f"{shard:08d}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for number in numbers:
                key, uid = f"{number:012d}", draw.bytes(16).hex()
                about = {"uid": uid, "caption": "a text", "exif": "x" * 900, "width": 512}
                # Only the header, which has the size, is parsed. Random bytes replace the pixels.
                image = head.getvalue() + draw.bytes(image_bytes - len(head.getvalue()))
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
