"""Time and peak memory of mixing: raw top 30 %, a synthetic caption for the rest above it.

    python benchmarks/mix.py [MILLIONS [ROWS_PER_SHARD [DISTINCT_SHARDS]]]

A work directory as `capmix index`, `import captions` and `score` leave it is generated: samples,
captions of one source, scores of both. Given DISTINCT_SHARDS, the others are hard links to these,
so that a billion rows need little disk; each is read and decoded all the same. The opponent does
what DataComp's clip_score baseline does for the raw texts alone (apply_filter.py: scores of all
files for the threshold, then uid and score of all files, uids to pairs of numbers, sort, save),
in as many processes. Each way runs in processes of its own; memory is the peak of the largest.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from capmix.mix.columns import columns_of
from capmix.mix.mix import mix
from capmix.mix.recipe import load_recipe
from capmix.mix.settings import MixSettings
from capmix.pool import Shard
from capmix.storage.layout import texts_folder
from capmix.storage.marker import Counts, Marker
from capmix.storage.store import Store

FRACTION = 0.3
RECIPE = load_recipe("raw-top+synthetic-above", {"synthetic": "blip2", "fraction": FRACTION})
WORDS = ["a", "red", "dog", "on", "the", "old", "table", "of", "two", "green", "sale", "2019"]
DATACOMP_AT_MOST = 130_000_000  # rows: what it keeps in memory would not fit


@dataclass
class Shards:
    """What a mix needs of a pool: the names of its shards."""

    shards: list[Shard]


def main() -> None:
    rows = int(float(sys.argv[1]) * 1e6) if len(sys.argv) > 1 else 12_800_000
    per_shard = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    distinct = int(sys.argv[3]) if len(sys.argv) > 3 else rows // per_shard
    with tempfile.TemporaryDirectory() as scratch:
        names = [f"{i:08d}" for i in range(rows // per_shard)]
        _generate(scratch, names, per_shard, distinct)
        size = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file()) / 2**30
        print(f"{rows:,} rows in {len(names):,} shards, {size:.1f} GiB as files", flush=True)
        seconds = {"capmix": _timed("capmix", _capmix, scratch, names, rows)}
        if rows <= DATACOMP_AT_MOST:
            seconds["DataComp"] = _timed("DataComp's steps", _datacomp, scratch, names, rows)
            print(f"capmix is {seconds['DataComp'] / seconds['capmix']:.1f} x as fast")


def _timed(name: str, way: object, folder: str, names: list[str], rows: int) -> float:
    process = multiprocessing.get_context("spawn").Process(target=way, args=(folder, names))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    process.start()
    process.join()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    told = f"{peak / 2**20:.2f}" if peak > before else f"under {before / 2**20:.2f}"
    print(
        f"{name:<18} {seconds:7.1f} s  {rows / seconds:12,.0f} rows/s  peak {told} GiB", flush=True
    )
    return seconds


def _capmix(folder: str, names: list[str]) -> None:
    pool = Shards([Shard(name, "") for name in names])
    columns = columns_of(["raw", "blip2"], {"clip": ["raw", "blip2"]}, "clip", {})
    summary = mix(Store(folder), pool, RECIPE, columns, MixSettings())  # type: ignore[arg-type]
    print("\n".join(summary.lines()))


def _datacomp(folder: str, names: list[str]) -> None:
    workers = min(len(os.sched_getaffinity(0)), len(names))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        files = [(folder, name) for name in names]
        scores = np.concatenate(list(pool.imap_unordered(_scores, files)))
        threshold = -np.sort(-scores)[int(len(scores) * FRACTION)]
        kept = pool.imap_unordered(_uids_above, [(*file, threshold) for file in files])
        uids = np.concatenate(list(kept))
    uids.sort()
    np.save(Path(folder) / "subset.npy", uids)


def _scores(file: tuple[str, str]) -> np.ndarray:
    path = Path(file[0]) / f"scores/clip/raw/{file[1]}.parquet"
    return pd.read_parquet(path, columns=["score"])["score"].to_numpy()


def _uids_above(file: tuple[str, str, float]) -> np.ndarray:
    path = Path(file[0]) / f"scores/clip/raw/{file[1]}.parquet"
    table = pd.read_parquet(path, columns=["uid", "score"])
    uids = table[table["score"] >= file[2]]["uid"].to_numpy()
    return np.array([(int(u[:16], 16), int(u[16:32], 16)) for u in uids], np.dtype("u8,u8"))


def _generate(folder: str, names: list[str], per_shard: int, distinct: int) -> None:
    with multiprocessing.Pool() as pool:
        jobs = [(folder, names[i], i, per_shard) for i in range(min(distinct, len(names)))]
        pool.map(_generate_shard, jobs, chunksize=1)
    store = Store(folder)
    for i, name in enumerate(names[distinct:], start=distinct):
        for part in ("samples", "captions/blip2", "scores/clip/raw", "scores/clip/blip2"):
            first = f"{part}/{names[i % distinct]}"
            (Path(folder) / f"{part}/{name}.parquet").hardlink_to(f"{folder}/{first}.parquet")
            marker = store.read_marker(first)
            assert marker is not None
            files = {f"{part}/{name}.parquet": marker.files[f"{first}.parquet"]}
            inputs = {of: store.fingerprint(f"{of}/{name}") for of in marker.inputs}
            store.write_marker(f"{part}/{name}", replace(marker, files=files, inputs=inputs))


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
    bank = [" ".join(draw.choice(WORDS, draw.integers(5, 14))) for _ in range(2_000)]
    first = {"k": pa.array(np.zeros(rows, np.int32))}
    side = pa.array(draw.integers(200, 512, rows, np.int32))

    def write(part: str, columns: dict[str, pa.Array], of: str = "pool") -> None:
        inputs = {of: store.fingerprint(f"{of}/{name}")}
        with store.draft(f"{part}/{name}") as draft:
            draft.write_table(f"{part}/{name}.parquet", pa.table(about | columns))
            draft.commit(Marker(inputs, {}, rows, Counts(ok=rows)))

    text = pa.array(bank).take(pa.array(draw.integers(0, len(bank), rows)))
    write("samples", {"text": text, "width": side, "height": side})
    text = pa.array(bank).take(pa.array(draw.integers(0, len(bank), rows)))
    flags = pa.array([[]], pa.list_(pa.string())).take(pa.array(np.zeros(rows, np.int32)))
    finish = pa.repeat(pa.scalar("stop"), rows)
    write("captions/blip2", first | {"text": text, "finish": finish, "flags": flags})
    for source, mean in (("raw", 0.208), ("blip2", 0.251)):  # the paper, section 6.1
        scores = pa.array(draw.normal(mean, 0.06, rows).astype(np.float32))
        cut = pa.repeat(pa.scalar(False), rows)
        texts = texts_folder(source)
        write(f"scores/clip/{source}", first | {"score": scores, "truncated": cut}, texts)


if __name__ == "__main__":
    main()
