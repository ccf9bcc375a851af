"""Seconds that `capmix view` takes to show a shard and a subset's decisions about it.

    python benchmarks/view.py [--millions 100] [--rows-per-shard 100000] [--distinct 10]

The work directory is that of benchmarks/mix.py, and the subset its recipe's; answers are timed as
the server makes them, JSON included.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import mix
import mix_rivals

from capmix.mix.columns import Column, columns_of
from capmix.pool import Shard
from capmix.storage.store import Store
from capmix.view.report import Reader

ROUNDS = 5


@dataclass
class Shards:
    """What the reader needs of a pool."""

    shards: list[Shard]


@dataclass
class Found:
    """What it needs of a work directory."""

    store: Store
    pool: Shards
    sources: tuple[str, ...] = ("raw", "blip2")
    scored: tuple[str, ...] = ("raw", "blip2")
    subsets: dict[str, None] = field(default_factory=lambda: {"raw-top30+blip2-above": None})
    population: dict[str, Any] = field(default_factory=lambda: {"steps": None})

    def columns(self) -> dict[str, Column]:
        found = columns_of(self.sources, {"clip": self.scored}, "clip", {}, ("width", "height"))
        fields = ("text", "flags", "score", "truncated")
        wanted = {f"{source}_{field}" for source in self.sources for field in fields}
        return {name: one for name, one in found.items() if name in {*wanted, "width", "height"}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=100)
    parser.add_argument("--rows-per-shard", type=int, default=100_000)
    parser.add_argument("--distinct", type=int, default=10)
    asked = parser.parse_args()
    folder = tempfile.mkdtemp()
    try:
        count = int(asked.millions * 1e6) // asked.rows_per_shard
        names = [f"{i:08d}" for i in range(count)]
        mix.generate(folder, names, asked.rows_per_shard, asked.distinct)
        mix_rivals.mix_capmix(folder, texts=False)
        reader = Reader(Found(Store(folder), Shards([Shard(n, "") for n in names])))  # type: ignore[arg-type]
        rows, decisions = [], []
        for name in names[:: len(names) // ROUNDS][:ROUNDS]:
            started = time.perf_counter()
            shown = json.dumps(reader.rows(name))
            rows.append(time.perf_counter() - started)
            started = time.perf_counter()
            json.dumps(reader.decisions("raw-top30+blip2-above", name))
            decisions.append(time.perf_counter() - started)
        print(f"{count:,} shards of {asked.rows_per_shard:,} samples")
        size = f"{len(shown) / 1e6:.1f} MB"
        print(f"a shard: {statistics.median(rows):.2f} s, most {max(rows):.2f} s, {size}")
        print(f"decisions: {statistics.median(decisions):.2f} s, most {max(decisions):.2f} s")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
