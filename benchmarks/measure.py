"""Time and peak memory of counting distinct trigrams, compared with a plain Python set.

    python benchmarks/measure.py [MILLIONS [ROUNDS]]

Generates captions of 3 to 15 words, drawn from 3 million words by a power law. Three ways
alternate, each in a separate process: only trigrams; everything that `capmix measure` counts in
texts (texts, words, bigrams, trigrams, at nested sample sizes); and the same with HyperLogLog. The
baseline is a set of tuples of words, on at most the first PLAIN_AT_MOST rows, as more would not fit
in memory. Ratios compare rows per second.
"""

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from capmix.engine.prefetch import prefetched
from capmix.measure.diversity import Diversity, Ngrams, SketchedDiversity, Split, split_batch
from capmix.measure.words import WORD

ROWS = 200_000  # per file
PLAIN_AT_MOST = 12_800_000
LEVELS = np.array([1e-4, 1e-3, 1e-2, 0.1, 0.3])  # as shares of the texts


def main() -> None:
    rows = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 12_800_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as scratch:
        files = [f"{scratch}/{i:05d}.parquet" for i in range(rows // ROWS)]
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(2) as workers:
            workers.starmap(_generate, enumerate(files))
        ways: dict[str, Callable[[list[str], str], int]] = {
            "trigrams": _trigrams,
            "all of measure": _everything,
            "all, sketched": _sketched,
            "plain set of trigrams": _plain,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                here = files[: PLAIN_AT_MOST // ROWS] if way is _plain else files
                with spawn.Pool(1) as one:
                    seconds, peak, found = one.apply(_timed, (way, here, scratch))
                count = len(here) * ROWS
                rates[name].append(count / seconds)
                print(
                    f"{name:<22} {count:>12,} rows {seconds:7.1f} s "
                    f"{count / seconds:10,.0f} rows/s peak {peak:.2f} GiB, "
                    f"{found:,} distinct trigrams",
                    flush=True,
                )
        medians = {name: statistics.median(of_way) for name, of_way in rates.items()}
        for name, rate in medians.items():
            print(f"{name:<22} {rate / medians['plain set of trigrams']:5.1f} x the plain set")


def _generate(seed: int, path: str) -> None:
    shared = np.random.default_rng(0)
    lengths = shared.integers(2, 11, 3_000_000)
    likely = 1 / np.arange(1, 27) ** 0.6
    letters = shared.choice(
        np.frombuffer(b"etaoinshrdlcumwfgypbvkjxqz", np.uint8),
        lengths.sum(),
        p=likely / likely.sum(),
    )
    ends = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    words = pa.StringArray.from_buffers(len(lengths), pa.py_buffer(ends), pa.py_buffer(letters))
    random = np.random.default_rng([1, seed])
    counts = random.integers(3, 16, ROWS)
    drawn = np.minimum((random.pareto(0.55, counts.sum()) * 20).astype(np.int64), len(words) - 1)
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), words.take(pa.array(drawn)))
    texts = pc.utf8_capitalize(pc.binary_join(lists, " "))
    pq.write_table(pa.table({"text": texts}), path, compression="snappy", row_group_size=ROWS)


def _timed(
    way: Callable[[list[str], str], int], files: list[str], scratch: str
) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        started = time.perf_counter()
        found = way(files, folder)
        seconds = time.perf_counter() - started
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, found


def _batches(files: list[str]) -> Iterator[Split]:
    def read(item: tuple[int, str]) -> Split:
        number, path = item
        texts = pa.concat_arrays(pq.read_table(path, use_threads=False)["text"].chunks)
        draws = np.random.default_rng(number).random(len(texts))
        return split_batch(texts, np.searchsorted(LEVELS, draws, side="right").astype(np.uint8))

    for _, future in prefetched(enumerate(files), read, workers=2, ahead=3):
        yield future.result()


def _trigrams(files: list[str], folder: str) -> int:
    counter = Ngrams(Path(folder), len(LEVELS) + 1, orders=(3,))
    for batch in _batches(files):
        counter.add(batch)
    return counter.counts()["unique_trigrams"][-1]


def _everything(files: list[str], folder: str) -> int:
    return _diversity(files, Diversity(Path(folder), len(LEVELS) + 1))


def _sketched(files: list[str], folder: str) -> int:
    return _diversity(files, SketchedDiversity(len(LEVELS) + 1))


def _diversity(files: list[str], counter: Diversity | SketchedDiversity) -> int:
    for batch in _batches(files):
        counter.add(batch)
    return int(counter.result()["unique_trigrams"])


def _plain(files: list[str], folder: str) -> int:
    seen: set[tuple[str, str, str]] = set()
    for path in files:
        for text in pq.read_table(path)["text"].to_pylist():
            words = WORD.findall(text.lower())
            seen.update(zip(words, words[1:], words[2:], strict=False))
    return len(seen)


if __name__ == "__main__":
    main()
