"""Time `capmix annotate --method concepts` on generated texts whose words follow Zipf's law.

python benchmarks/concepts.py FOLDER [--texts 1000000] [--entries 500000] [--workers 2]

The floor is the matcher of the library alone, without reading, writing or counting, in as many
processes. Everything is written to FOLDER, which must not exist.
"""

import argparse
import itertools
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD = 100_000
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def vocabulary(words: int, rng: np.random.Generator) -> np.ndarray:
    """Return distinct words of 3 to 10 letters, the most frequent first."""
    picks = np.minimum(rng.exponential(6, (2 * words, 10)).astype(int), 25)
    letters = np.array(list(LETTERS))[picks]
    lengths = rng.integers(3, 11, 2 * words)
    rows = zip(letters.tolist(), lengths.tolist(), strict=True)
    found = list(dict.fromkeys("".join(row[:length]) for row, length in rows))
    return np.array(found[:words])


class Writer:
    """Draws words by Zipf's law."""

    def __init__(self, words: np.ndarray, rng: np.random.Generator):
        shares = 1 / np.arange(2, len(words) + 2) ** 1.05
        self._words, self._rng = words, rng
        self._cumulative = np.cumsum(shares / shares.sum())

    def draw(self, count: int) -> list[str]:
        places = np.searchsorted(self._cumulative, self._rng.random(count))
        return self._words[np.minimum(places, len(self._words) - 1)].tolist()

    def texts(self, count: int) -> list[str]:
        lengths = self._rng.integers(4, 22, count)
        words, bounds = self.draw(int(lengths.sum())), np.cumsum([0, *lengths]).tolist()
        return [" ".join(words[a:b]) for a, b in itertools.pairwise(bounds)]


def write(folder: Path, texts: int, entries: int) -> None:
    rng = np.random.default_rng(0)
    words = vocabulary(300_000, rng)
    writer = Writer(words, rng)
    (folder / "pool").mkdir(parents=True)
    for number, start in enumerate(range(0, texts, SHARD)):
        count = min(SHARD, texts - start)
        uids = [f"{row:032x}" for row in range(start, start + count)]
        table = pa.table({"uid": uids, "text": writer.texts(count)})
        pq.write_table(table, folder / f"pool/{number:05d}.parquet")
    chosen = dict.fromkeys(words[: 2 * entries // 5].tolist())
    while len(chosen) < entries:
        pairs = writer.draw(entries)
        chosen |= dict.fromkeys(map(" ".join, zip(pairs[::2], pairs[1::2], strict=True)))
    (folder / "entries.txt").write_text("\n".join(list(chosen)[:entries]))


def floor(job: tuple[Path, int, int]) -> tuple[float, int]:
    """Return CPU seconds of the matcher alone on a share of the texts, and their number."""
    from ahocorasick_rs import BytesAhoCorasick

    folder, number, workers = job
    lines = (folder / "entries.txt").read_text().split("\n")
    matcher = BytesAhoCorasick([f" {line} ".encode() for line in lines])
    paths = sorted((folder / "pool").glob("*.parquet"))[number::workers]
    texts = [t for path in paths for t in pq.read_table(path)["text"].to_pylist()]
    started = time.process_time()
    for text in texts:
        matcher.find_matches_as_indexes(f" {text} ".encode(), overlapping=True)
    return time.process_time() - started, len(texts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    write(given.folder, given.texts, given.entries)
    import capmix

    work = capmix.open(str(given.folder / "pool"), str(given.folder / "work"))
    work.index()
    before, started = _cpu(), time.perf_counter()
    work.annotate(
        method="concepts", entries=str(given.folder / "entries.txt"), workers=given.workers
    )
    wall, cpu = time.perf_counter() - started, _cpu() - before
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"annotate: {wall:.0f} s, CPU {cpu:.0f} s, largest process {largest:.2f} GiB")
    jobs = [(given.folder, number, given.workers) for number in range(given.workers)]
    with ProcessPoolExecutor(given.workers) as pool:
        seconds = sum(one for one, _ in pool.map(floor, jobs))
    print(f"matcher alone: CPU {seconds:.0f} s")
    print(f"ratio of CPU: {cpu / seconds:.2f}")


def _cpu() -> float:
    mine, others = (
        resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + others.ru_utime + others.ru_stime


if __name__ == "__main__":
    main()
