"""CPU time of keeping captions of an unfinished shard in a side file (engine/partial.py).

    python benchmarks/partial.py [--samples 2000] [--pairs 60]

A captioner without cost captions one shard with and without the side file, in random order. CPU
seconds of the process are compared in pairs: load of the machine changes both. The share is that
of captioners of 500, 1,000 and 2,000 images/s.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

from engine import NullCaptioner, write_pool

from capmix.caption.image_stage import image_caption_stage
from capmix.engine.partial import PartialPart
from capmix.engine.stage import run_one
from capmix.pool import Pool, open_pool
from capmix.storage.store import Store


def captioned(pool: Pool, work: str) -> float:
    """Caption the shard, and return the CPU seconds."""
    stage = image_caption_stage(pool, NullCaptioner(), "null")
    started = time.process_time()
    run_one(stage, pool.shards[0], Store(work), lambda _: None)
    return time.process_time() - started


def captioned_without(pool: Pool, work: str) -> float:
    """Caption the shard without a side file."""
    off: dict[str, Any] = {"add": lambda *_: None, "entries": lambda *_: iter(())}
    with mock.patch.multiple(PartialPart, **off):
        return captioned(pool, work)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    ways: list[Callable[[Pool, str], float]] = [captioned, captioned_without]
    found: dict[Any, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        pool = open_pool(str(write_pool(Path(folder) / "pool", 1, options.samples)))
        for pair in range(options.pairs + 2):
            for way in random.sample(ways, 2):
                seconds = way(pool, f"{folder}/{pair}{way.__name__}")
                if pair >= 2:  # the first ones warm up
                    found[way].append(seconds / options.samples * 1e6)
    differences = [a - b for a, b in zip(found[captioned], found[captioned_without], strict=True)]
    extra = statistics.median(differences)
    low, _, high = statistics.quantiles(differences, n=4)
    print(f"without a side file: {statistics.median(found[captioned_without]):.1f} us per image")
    print(f"the side file: {extra:+.1f} us per image (quartiles {low:+.1f} to {high:+.1f})")
    for rate in (500, 1000, 2000):
        print(f"  at {rate:,} images/s: {extra * rate / 1e6:.2%} of one core")


if __name__ == "__main__":
    main()
