"""Rows per second and peak memory of `capmix import captions`, by uid, from parquet files.

    python benchmarks/import_rows.py [MILLIONS]

The index of a pool of shards of 10,000 samples is written to disk, and as many captions of 6 to
12 words in another order, a tenth of them for uids that the pool does not have. The bound is what
DuckDB is given; Python and Arrow come on top.
"""

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from capmix.annotate.imported import MEMORY, import_captions
from capmix.pool import Shard
from capmix.storage.marker import Counts, Marker
from capmix.storage.rows import Row, table_of
from capmix.storage.store import Store

SHARD = 10_000
WORDS = np.array(["two", "red", "old", "dogs", "cats", "run", "on", "in", "the", "a", "sea"])


@dataclass
class Index:
    """What an import needs of a pool: its shards, whose samples are indexed already."""

    shards: list[Shard]


def main() -> None:
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(millions * 1e6) // SHARD * SHARD
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = Store(str(folder / "work"))
        index = _write_index(store, count)
        _write_captions(folder, count)
        before = _peak()
        started = time.perf_counter()
        found = import_captions(store, index, [f"{folder}/*.parquet"], "blip2", "uid", "text")
        seconds = time.perf_counter() - started
    print("\n".join(found.lines()))
    print(f"{count:,} samples in {seconds:.0f} s, {count / seconds:,.0f} rows/s")
    print(f"peak memory {_peak():.2f} GiB ({before:.2f} before); DuckDB was given {MEMORY}")


def _write_index(store: Store, count: int) -> Index:
    shards = []
    for shard in range(count // SHARD):
        name = f"{shard:08d}"
        numbers = range(shard * SHARD, (shard + 1) * SHARD)
        rows = [Row(_uid(i), f"{i:012d}", values=("raw text",)) for i in numbers]
        with store.draft(f"samples/{name}") as draft:
            draft.write_table(f"samples/{name}.parquet", table_of(rows, [("text", pa.string())]))
            draft.commit(Marker({}, {}, SHARD, Counts(ok=SHARD)))
        shards.append(Shard(name, f"{name}.tar"))
    return Index(shards)


def _write_captions(folder: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    step = 1_000_000
    for start in range(0, count, step):
        numbers = np.arange(start, min(start + step, count)) * 7_919 % int(count * 1.1)
        lengths = draw.integers(6, 13, len(numbers))
        words = WORDS[draw.integers(0, len(WORDS), (len(numbers), 12))]
        texts = [" ".join(row[:length]) for row, length in zip(words, lengths, strict=True)]
        table = pa.table({"uid": [_uid(int(i)) for i in numbers], "text": texts})
        pq.write_table(table, folder / f"{start:010d}.parquet")


def _uid(number: int) -> str:
    """32 hex digits in no order."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{number:016x}"


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
