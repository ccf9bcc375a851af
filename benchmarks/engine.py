"""Overhead of the engine on a pool of tars.

    python benchmarks/engine.py [--shards 40] [--samples 1000] [--rounds 5] [--ray]

The baseline is the bare shard reader: it reads every sample of every shard sequentially in this
process. It is compared with a minimal stage, which stores only keys, in the local engine (target:
90% of the baseline's rate), in one process per core, and in one Ray actor per core (target: 80%
of the rate with processes). The last way is a captioner that does nothing, with the threads, flags
and rows of captioning. The ways alternate, and medians are compared.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import pyarrow as pa
from samples import image_bytes, sample_members, tar_bytes

from capmix.caption.captioner import Caption
from capmix.caption.image_stage import image_caption_stage
from capmix.engine.local import cores
from capmix.engine.settings import EngineSettings
from capmix.engine.stage import PartWriter, Stage
from capmix.models.index import pool_inputs
from capmix.pool import Pool, Sample, Shard, open_pool
from capmix.workspace import open_workspace

FLOOR, SEVERAL = "bare shard reader", "local, process per core"


class NullCaptioner:
    """Returns the same caption for every image."""

    settings: dict[str, Any] = {"model": "null"}  # noqa: RUF012
    batch_size, workers = 64, 2

    def prepare(self, sample: Sample) -> None:
        pass

    def caption(
        self, prepared: Sequence[None], uids: Sequence[str], source: str
    ) -> list[list[Caption]]:
        return [[Caption("a picture")] for _ in uids]


def captions(pool: Pool) -> list[Stage]:
    return [image_caption_stage(pool, NullCaptioner(), "null")]


def keys(pool: Pool) -> list[Stage]:
    """Return a minimal stage, which stores only the keys of samples."""

    def run_shard(shard: Shard, out: PartWriter) -> None:
        found = []
        for sample in pool.read(shard):
            out.count_in()
            found.append(sample.key)
            out.count_ok()
        out.write_table(pa.table({"key": found}))

    return [Stage("keys", "keys", {}, pool_inputs, run_shard)]


def read(pool: Path, _: Path) -> None:
    """Read every sample: the baseline."""
    opened = open_pool(str(pool))
    for shard in opened.shards:
        for _sample in opened.read(shard):
            pass


def run(
    stages: Callable[[Pool], list[Stage]], engine: EngineSettings, pool: Path, work: Path
) -> None:
    opened = open_workspace(str(pool), str(work), engine=engine)
    opened.run(partial(stages, opened.pool))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    here, several = EngineSettings(), EngineSettings(workers=cores())
    ways: dict[str, Callable[[Path, Path], None]] = {
        FLOOR: read,
        "local": partial(run, keys, here),
        SEVERAL: partial(run, keys, several),
    }
    if options.ray:
        actors = EngineSettings(name="ray", workers=cores())
        ways["ray, actor per core"] = partial(run, keys, actors)
        _start_ray()
    ways["local, null captioner"] = partial(run, captions, here)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pool = write_pool(folder / "pool", options.shards, options.samples)
        count = options.shards * options.samples
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                shutil.rmtree(folder / "work", ignore_errors=True)
                os.sync()
                started = time.perf_counter()
                way(pool, folder / "work")
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, middle in medians.items():
        floor = SEVERAL if name.startswith("ray") else FLOOR
        share = medians[floor] / middle
        print(f"{name:<26}{middle:7.2f} s{count / middle:10,.0f} samples/s{share:8.0%} of {floor}")


def write_pool(folder: Path, shards: int, samples: int) -> Path:
    """Write a pool of JPEGs of about 25 kB, the average of web-crawled pools."""
    folder.mkdir(parents=True)
    photo = image_bytes(1, (1200, 900))
    photo += bytes(25_000 - len(photo)) if len(photo) < 25_000 else b""
    for shard in range(shards):
        members = []
        for row in range(samples):
            number = shard * samples + row
            sample = sample_members(f"{number:09d}", number, f"picture {number} of the pool")
            members += [(sample[0][0], photo), *sample[1:]]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members, mtime=0))
    return folder


def _start_ray() -> None:
    """Start Ray before the timing, with workers that can import the modules that this file uses."""
    import ray

    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]
    where = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    ray.init("local", log_to_driver=False, logging_level="error", runtime_env=where,
             include_dashboard=False)  # fmt: skip


if __name__ == "__main__":
    main()
