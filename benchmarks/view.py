"""Time of requests to `capmix view`.

Report: the samples of a shard, and the decisions of a subset about it. Workbench: the first samples
of a shard, a search in it, an edit, find and replace, and writing the parts.

    python benchmarks/view.py [--millions 100] [--rows-per-shard 100000] [--distinct 10]

Work directory and subset are generated as in benchmarks/mix.py. Times include the creation of the
JSON response.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mix
import mix_rivals

from capmix.mix.catalog import Catalog
from capmix.mix.columns import Column, columns_of
from capmix.pool import Shard
from capmix.storage.store import Store
from capmix.view.report import Reader
from capmix.view.server import make_workbench
from capmix.view.settings import ViewSettings
from capmix.view.workbench import Query, Start

ROUNDS = 5


@dataclass
class Shards:
    """The attributes of a pool that the reader and the workbench need."""

    shards: list[Shard]
    location: str = "generated"
    has_images: bool = False


@dataclass
class Found:
    """The attributes of a workspace that the reader needs."""

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


def time_workbench(folder: str, names: list[str]) -> None:
    """Print the median and maximum of the first requests for ROUNDS shards."""
    pool = Shards([Shard(name, "") for name in names])
    catalog = Catalog(pool, Store(folder))  # type: ignore[arg-type]
    settings = ViewSettings(author="benchmark", scorer="clip", source="fixed")
    bench = make_workbench(catalog, settings)
    chosen = names[len(names) // 2 :: max(1, len(names) // (2 * ROUNDS))][:ROUNDS]
    seconds: dict[str, list[float]] = {}

    def timed(what: str, work: Callable[..., Any], *values: Any) -> Any:
        started = time.perf_counter()
        found = work(*values)
        json.dumps(found)
        seconds.setdefault(what, []).append(time.perf_counter() - started)
        return found

    for name in chosen:
        row = timed("list", bench.listed, Query(name), Start())["rows"][0]
        timed("jump", bench.listed, Query(name), Start(names.index(name), 50_000))
        base = next(one for one in row["texts"] if one["name"] == "blip2")
        query = Query(name, find=base["text"][:3], within="blip2", base="blip2")
        timed("search", bench.listed, query, Start())
        wanted = {"text": "another text", "base": "blip2", "digest": base["digest"]}
        timed("edit", bench.act, name, row["uid"], row["version"], wanted)
        few = replace(query, find=base["text"][:8])
        seen = timed("preview", bench.replacements, few, "eleven")
        timed("replace", bench.replace, few, "eleven", seen["digest"])
        print(f"{seen['count']:,} replaced")
        timed("parts", bench.save)
        timed("undo", bench.undo)
    for what, found in seconds.items():
        print(f"{what}: median {statistics.median(found):.3f} s, maximum {max(found):.3f} s")


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
        print(f"a shard: median {statistics.median(rows):.2f} s, maximum {max(rows):.2f} s, {size}")
        print(f"decisions: {statistics.median(decisions):.2f} s, most {max(decisions):.2f} s")
        time_workbench(folder, names)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
