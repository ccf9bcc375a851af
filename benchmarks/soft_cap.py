"""Time and peak memory of recipes that draw rows, and of mixing with --exclude.

    python benchmarks/soft_cap.py [--millions 12.8] [--distinct 64] [--scale 100]
                                  [--entries 10] [--ways raw,soft-cap,...] [--keep DIR]

Generates a work directory as benchmarks/mix.py does; with --distinct, its shards are links to the
first N. Each way runs once, in a process of its own:

    raw         all raw texts, without drawing: the time that the other ways add to
    soft-cap    the recipe soft-cap: 10 x the pool in batches of 1/128 of it
    hard-cap    the recipe hard-cap, at most 12 repeats
    exclude     raw, without the samples of a list of --entries million uids
    naive       three batches of soft-cap with a Gumbel key for every row; prints the time of one
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WAYS = "raw,soft-cap,hard-cap,exclude,naive"
BATCHES_PER_POOL = 128
NAIVE_BATCHES = 3


def main() -> None:
    asked = _arguments()
    if asked.way:
        _run(asked)
        return
    rows = int(asked.millions * 1e6)
    names = [f"{i:08d}" for i in range(rows // asked.rows_per_shard)]
    folder = asked.keep or tempfile.mkdtemp()
    try:
        if not Path(folder, "samples").exists():
            from mix import generate

            generate(folder, names, asked.rows_per_shard, asked.distinct or len(names))
        if "exclude" in asked.ways and not Path(folder, "uids.txt").exists():
            _write_uids(folder, int(asked.entries * 1e6))
        for way in asked.ways.split(","):
            _measure(way, folder)
    finally:
        if not asked.keep:
            shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=12.8)
    parser.add_argument("--rows-per-shard", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=64)
    parser.add_argument("--scale", type=float, default=100)
    parser.add_argument("--entries", type=float, default=10)
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--keep")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(way: str, folder: str) -> None:
    command = [sys.executable, __file__, *sys.argv[1:], "--keep", folder, "--way", way]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{way:<10} {wall:8.1f} s, CPU {cpu:8.1f} s; {done.stdout.strip()}", flush=True)


def _write_uids(folder: str, count: int) -> None:
    """Write a list of uids that are not in the pool, and of the first shard's."""
    import pyarrow.parquet as pq

    first = min(Path(folder, "samples").glob("*.parquet"))
    digits = np.random.default_rng(10**9).bytes(16 * count).hex()
    with Path(folder, "uids.txt").open("w") as stream:
        stream.write("uid\n")
        stream.writelines(f"{digits[i : i + 32]}\n" for i in range(0, 32 * count, 32))
        stream.writelines(f"{uid}\n" for uid in pq.read_table(first, columns=["uid"])["uid"])


def _run(asked: argparse.Namespace) -> None:
    if asked.way == "naive":
        _naive(int(asked.millions * 1e6), asked.scale)
    else:
        _mix(asked.way, asked.keep, int(asked.millions * 1e6), asked.scale)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")


def _naive(rows: int, scale: float) -> None:
    draw = np.random.default_rng(0)
    logits = scale * draw.normal(0.208, 0.06, rows)
    size = rows // BATCHES_PER_POOL
    started = time.perf_counter()
    for _ in range(NAIVE_BATCHES):
        keys = logits - np.log(-np.log(draw.random(rows)))
        logits[np.argpartition(keys, rows - size)[rows - size :]] -= 0.15
    print(f"{(time.perf_counter() - started) / NAIVE_BATCHES:.2f} s per batch", end="; ")


def _mix(way: str, folder: str, rows: int, scale: float) -> None:
    from capmix.mix.columns import columns_of
    from capmix.mix.mix import mix
    from capmix.mix.recipe import load_recipe
    from capmix.mix.settings import MixSettings
    from capmix.pool import Shard
    from capmix.storage.store import Store

    @dataclass
    class Shards:
        """The attributes of a pool that a mix needs: its shards."""

        shards: list[Shard]
        has_images: bool = True

    drawn = {"scale": scale, "batch": rows // BATCHES_PER_POOL}
    parameters: dict[str, dict[str, Any]] = {"soft-cap": drawn, "hard-cap": drawn | {"cap": 12}}
    recipe = load_recipe("raw" if way == "exclude" else way, parameters.get(way, {}))
    names = sorted(os.listdir(f"{folder}/samples"))
    pool = Shards([Shard(name.removesuffix(".parquet"), "") for name in names])
    columns = columns_of(["raw", "blip2"], {"clip": ["raw", "blip2"]}, "clip", {})
    settings = MixSettings(exclude=[f"{folder}/uids.txt"] if way == "exclude" else [])
    store = Store(folder)
    output = f"{way}-{time.time_ns()}"  # so that an earlier one is not up to date
    summary = mix(store, pool, recipe, columns, settings, output)  # type: ignore[arg-type]
    print("; ".join([f"{summary.kept:,} rows", *map(str.strip, summary.lines()[2:])]), end="; ")


if __name__ == "__main__":
    main()
