"""Time and peak memory of mixing, compared with other tools (see mix_rivals.py).

    python benchmarks/mix.py [--millions 12.8] [--rows-per-shard 10000] [--distinct N]
                             [--rounds 3] [--ways capmix,polars,...] [--against SRC] [--keep DIR]

Generates a work directory with the output of `capmix index`, `import captions` and `score`:
samples, captions of one source, and scores of raw texts and captions. With --distinct, only the
first N shards are written and the others are hard links to them, so that a billion rows need little
disk space; every shard is still read and decoded. The ways alternate, each in a separate process.
Prints medians, and the peak memory of the largest process. --against is the src folder of another
checkout, whose capmix is also timed.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from capmix.score.array import HEADER, PinnedParts, read_array
from capmix.storage.layout import ARRAYS, texts_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

WAYS = "capmix,capmix-texts,polars,polars-texts,duckdb,duckdb-texts,datacomp"
PARTS = ("samples", "captions/blip2", "scores/clip/raw", "scores/clip/blip2")
WORDS = 20_000  # distinct words in captions; frequencies follow Zipf's law, as in English


@dataclass
class Times:
    """Measurements of one way, by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0
    rows: int = 0


def main() -> None:
    asked = _arguments()
    rows = int(asked.millions * 1e6)
    names = [f"{i:08d}" for i in range(rows // asked.rows_per_shard)]
    folder = asked.keep or tempfile.mkdtemp()
    try:
        if not Path(folder, "samples").exists():
            generate(folder, names, asked.rows_per_shard, asked.distinct or len(names))
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file()) / 2**30
        print(f"{rows:,} rows in {len(names):,} shards, {size:.1f} GiB on disk", flush=True)
        ways = asked.ways.split(",") + (["capmix --against"] if asked.against else [])
        found = {way: Times() for way in ways}
        for _ in range(asked.rounds):
            for way, times in found.items():
                _run(way, folder, times, asked.against)
        _show(found, rows)
        for file in sorted(Path(folder).glob("*.parquet")) + sorted(Path(folder).rglob("raw-top*")):
            if file.suffix in (".parquet", ".npy"):
                print(f"{file.relative_to(folder)}: {file.stat().st_size / 1e6:,.1f} MB")
    finally:
        if not asked.keep:
            shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=12.8)
    parser.add_argument("--rows-per-shard", type=int, default=10_000)
    parser.add_argument("--distinct", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=WAYS)
    parser.add_argument("--against")
    parser.add_argument("--keep")
    return parser.parse_args()


def _run(way: str, folder: str, times: Times, against: str | None) -> None:
    for old in [*Path(folder).glob("subsets/**/*"), *Path(folder).glob(".markers/subsets/*")]:
        if old.is_file():
            old.unlink()
    environment = dict(os.environ)
    if way.endswith("--against"):
        environment["PYTHONPATH"] = str(against)
    script = Path(__file__).parent / "mix_rivals.py"
    command = [sys.executable, str(script), way.partition(" ")[0], folder]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    times.wall.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    times.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    times.peak = max(
        times.peak, after.ru_maxrss / 2**20 if after.ru_maxrss > before.ru_maxrss else 0
    )
    times.rows = int(done.stdout.split()[-1])
    print(f"  {way} {times.wall[-1]:.2f} s", flush=True)


def _show(found: dict[str, Times], rows: int) -> None:
    middle = {way: statistics.median(times.wall) for way, times in found.items()}
    bases = [way for way in ("datacomp", "polars", "duckdb", "capmix") if way in found]
    heads = " ".join(f"{f'{way}/':>9}" for way in bases)
    print(f"{'way':<20} {'wall s':>7} {'CPU s':>7} {'rows/s':>12} {'kept':>12} {'GiB':>5} {heads}")
    for way, times in found.items():
        ratios = " ".join(f"{middle[base] / middle[way]:9.2f}" for base in bases)
        peak = f"{times.peak:.2f}" if times.peak else "less"
        print(
            f"{way:<20} {middle[way]:7.2f} {statistics.median(times.cpu):7.2f} "
            f"{rows / middle[way]:12,.0f} {times.rows:12,} {peak:>5} {ratios}",
            flush=True,
        )


def generate(folder: str, names: list[str], per_shard: int, distinct: int) -> None:
    with multiprocessing.Pool() as pool:
        jobs = [(folder, names[i], i, per_shard) for i in range(min(distinct, len(names)))]
        pool.map(_generate_shard, jobs, chunksize=1)
    rest = names[distinct:]
    if rest:
        with multiprocessing.Pool() as pool:
            numbered = enumerate(rest, start=distinct)
            links = [(folder, name, names[i % distinct]) for i, name in numbered]
            pool.map(_link_shard, links, chunksize=100)


def _link_shard(job: tuple[str, str, str]) -> None:
    """A shard whose files are those of another; its markers, and so its arrays' heads, are its
    own."""
    folder, name, other = job
    store = Store(folder)
    for part in PARTS:
        first = f"{part}/{other}"
        (Path(folder) / f"{part}/{name}.parquet").hardlink_to(f"{folder}/{first}.parquet")
        marker = store.read_marker(first)
        assert marker is not None
        files = {f"{part}/{name}.parquet": marker.files[f"{first}.parquet"]}
        inputs = {of: store.fingerprint(f"{of}/{name}") for of in marker.inputs}
        _write_marker(folder, f"{part}/{name}", replace(marker, files=files, inputs=inputs))
    for source in ("raw", "blip2"):
        _copy_array(store, f"scores/clip/{source}", name, other)


def _copy_array(store: Store, scores: str, name: str, other: str) -> None:
    """Copy a score array, with the fingerprints of the shard's own parts in its header."""
    data = Path(store.path(f"{ARRAYS}/{scores}/{other}")).read_bytes()
    magic, samples, planes, flags, _, _, _, digest = HEADER.unpack_from(data)
    parts = ("samples", texts_folder(scores.rpartition("/")[2]), scores)
    prints = [bytes.fromhex(store.fingerprint(f"{part}/{name}")) for part in parts]
    head = HEADER.pack(magic, samples, planes, flags, *prints, digest)
    path = Path(store.path(f"{ARRAYS}/{scores}/{name}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + data[HEADER.size :])


def _write_marker(folder: str, part: str, marker: Marker) -> None:
    """Write a marker without fsync, which would take hours for a million markers."""
    from capmix.storage.marker import marker_bytes

    path = Path(folder) / f".markers/{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(marker_bytes(marker))


def _write_arrays(store: Store, name: str) -> None:
    for source in ("raw", "blip2"):
        read_array(store, f"scores/clip/{source}", name, PinnedParts.present(store))


def _generate_shard(job: tuple[str, str, int, int]) -> None:
    folder, name, number, rows = job
    draw, store = np.random.default_rng(number), Store(folder)
    numbers = np.arange(number * rows, (number + 1) * rows)
    digits = draw.bytes(16 * rows).hex()
    starts = pa.py_buffer((np.arange(rows + 1, dtype=np.int32) * 32).tobytes())
    uids = pa.StringArray.from_buffers(rows, starts, pa.py_buffer(digits.encode()))
    nothing = pa.nulls(rows, pa.string())
    about = {
        "uid": uids,
        "key": pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), 12, "0"),
        "status": pa.repeat(pa.scalar("ok"), rows),
        "reason": nothing,
        "detail": nothing,
    }
    first = {"k": pa.array(np.zeros(rows, np.int32))}
    side = pa.array(draw.integers(200, 512, rows, np.int32))

    def write(part: str, columns: dict[str, pa.Array], of: str = "pool") -> None:
        inputs = {of: store.fingerprint(f"{of}/{name}")}
        with store.draft(f"{part}/{name}") as draft:
            draft.write_table(f"{part}/{name}.parquet", pa.table(about | columns))
            draft.commit(Marker(inputs, {}, rows, Counts(ok=rows)))

    write("samples", {"text": _texts(draw, rows), "width": side, "height": side})
    flags = pa.array([[]], pa.list_(pa.string())).take(pa.array(np.zeros(rows, np.int32)))
    finish = pa.repeat(pa.scalar("stop"), rows)
    captions = {"text": _texts(draw, rows), "finish": finish, "flags": flags}
    write("captions/blip2", first | captions)
    for source, mean in (("raw", 0.208), ("blip2", 0.251)):  # the paper, section 6.1
        scores = pa.array(draw.normal(mean, 0.06, rows).astype(np.float32))
        cut = pa.repeat(pa.scalar(False), rows)
        texts = texts_folder(source)
        write(f"scores/clip/{source}", first | {"score": scores, "truncated": cut}, texts)
    _write_arrays(store, name)


def _texts(draw: np.random.Generator, rows: int) -> pa.Array:
    """Return distinct captions of 5 to 13 words."""
    letters = np.random.default_rng(0).integers(97, 123, (WORDS, 9), np.uint8)
    words = [bytes(one[: 2 + i % 8]).decode() for i, one in enumerate(letters)]
    lengths = draw.integers(5, 14, rows)
    shares = 1 / np.arange(1, WORDS + 1)
    chosen = np.searchsorted(np.cumsum(shares / shares.sum()), draw.random(int(lengths.sum())))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(words).take(pa.array(np.minimum(chosen, WORDS - 1)))
    )
    return pc.binary_join(lists, " ")


if __name__ == "__main__":
    main()
