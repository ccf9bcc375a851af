"""Rows per second, CPU time and peak memory of `capmix import captions` from Parquet files by uid.

    python benchmarks/import_rows.py [--millions N] [--rounds N] [--against SRC]

Writes the index of a pool with shards of 10,000 samples, and as many captions in another order; a
tenth of them have uids that are not in the pool. A caption joins two random phrases of 3 to 7
words, each from a list of 100,000. 2% of the phrases contain a stock-photo phrase, a refusal or a
repetition, and 5% a non-ASCII character. Each import runs in a separate process and into a folder
that is removed afterwards. `--against` is the `src` folder of another checkout; the two alternate,
and medians are compared. CPU time is user and system time of all threads and child processes.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.annotate.imported import import_captions
from capmix.pool import Shard
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

SHARD = 10_000
FILE = 1_000_000
BANK = 100_000
SPARE = 1.1  # uids in the files per uid in the pool
ODD = ("royalty free stock photo", "I can't see the image", "a hat on a hat on a hat on a hat on")
BEYOND = ("caf\u00e9", "\u2014", "it\u2019s", "na\u00efve", "\u72ac", "\U0001f436")


@dataclass
class Index:
    """The attributes of a pool that an import needs: its shards, which are already indexed."""

    shards: list[Shard]


@dataclass(frozen=True)
class Took:
    """The cost of one import: seconds of wall time and of CPU time, and peak memory in GiB."""

    wall: float
    cpu: float
    peak: float


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--millions", type=float, default=1)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--against", metavar="SRC")
    asked.add_argument("--one", metavar="FOLDER", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.one:
        print(json.dumps(vars(_import(Path(given.one)))))
        return
    count = int(given.millions * 1e6) // SHARD * SHARD
    ways = {"this": os.environ.get("PYTHONPATH", "")}
    if given.against:
        ways["--against"] = given.against
    with tempfile.TemporaryDirectory() as scratch:
        _write_index(Path(scratch), count)
        _write_captions(Path(scratch), count)
        took: dict[str, list[Took]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, source in ways.items():
                took[name].append(_in_process(scratch, source))
    for name, found in took.items():
        wall, cpu, peak = (statistics.median(getattr(one, what) for one in found)
                           for what in ("wall", "cpu", "peak"))  # fmt: skip
        print(
            f"{name:<9}  {count:,} samples: {wall:.2f} s ({count / wall:,.0f} rows/s), "
            f"{cpu:.2f} s of CPU, peak memory {peak:.2f} GiB"
        )


def _in_process(folder: str, source: str) -> Took:
    command = [sys.executable, __file__, "--one", folder]
    environment = os.environ | {"PYTHONPATH": source}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", file=sys.stderr, flush=True)
    shutil.rmtree(f"{folder}/work/captions")
    shutil.rmtree(f"{folder}/work/.markers/captions")
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def _import(folder: Path) -> Took:
    """Import the files in a folder, and print the import's first line."""
    names = sorted(path.stem for path in folder.glob("work/samples/*.parquet"))
    index = Index([Shard(name, f"{name}.tar") for name in names])
    store = Store(str(folder / "work"))
    before, started = _cpu(), time.perf_counter()
    found = import_captions(store, index, [f"{folder}/*.parquet"], "blip2", "uid", "text")  # type: ignore[arg-type]
    wall = time.perf_counter() - started
    print(found.lines()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Took(wall, _cpu() - before, peak)


def _cpu() -> float:
    used = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _write_index(folder: Path, count: int) -> None:
    store = Store(str(folder / "work"))
    nothing = pa.nulls(SHARD, pa.string())
    for start in range(0, count, SHARD):
        name = f"{start // SHARD:08d}"
        numbers = np.arange(start, start + SHARD)
        table = pa.table(
            {
                "uid": _uids(numbers),
                "key": pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 12, "0"),
                "status": pa.repeat("ok", SHARD),
                "reason": nothing,
                "detail": nothing,
                "text": pa.repeat("raw text", SHARD),
            }
        )
        with store.draft(f"samples/{name}") as draft:
            draft.write_table(f"samples/{name}.parquet", table)
            draft.commit(Marker({}, {}, SHARD, Counts(ok=SHARD)))


def _write_captions(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    halves = _halves(draw), _halves(draw)
    for start in range(0, count, FILE):
        numbers = np.arange(start, min(start + FILE, count)) * 7_919 % int(count * SPARE)
        chosen = (half.take(pa.array(draw.integers(BANK, size=len(numbers)))) for half in halves)
        texts = pc.binary_join_element_wise(*chosen, " ")
        table = pa.table({"uid": _uids(numbers), "text": texts})
        pq.write_table(
            table, folder / f"{start:010d}.parquet", compression="zstd", use_dictionary=False
        )


def _halves(draw: np.random.Generator) -> pa.Array:
    """Return phrases of 3 to 7 words; some words are much more frequent than others."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(
        ["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(5_000)], object
    )
    chosen = words[(draw.random((BANK, 7)) ** 3 * len(words)).astype(int)]
    texts = []
    for row, length in zip(chosen.tolist(), draw.integers(3, 8, BANK).tolist(), strict=True):
        if draw.random() < 0.02:
            row[1] = str(draw.choice(ODD))
        if draw.random() < 0.05:
            row[0] = str(draw.choice(BEYOND))
        texts.append(" ".join(row[:length]))
    return pa.array(texts)


def _uids(numbers: np.ndarray) -> pa.Array:
    """Return a unique uid of 32 hex digits for each number, in no particular order."""
    factors = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], np.uint64)
    both = (numbers.astype(np.uint64)[:, None] + np.uint64(1)) * factors
    both ^= both >> np.uint64(29)
    digits = both.astype(">u8").tobytes().hex().encode()
    ends = pa.array(np.arange(len(numbers) + 1, dtype=np.int32) * 32)
    return pa.StringArray.from_buffers(len(numbers), ends.buffers()[1], pa.py_buffer(digits))


if __name__ == "__main__":
    main()
