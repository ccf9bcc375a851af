"""Soak test: a run that is killed repeatedly must write the same files as an undisturbed one.

    python benchmarks/soak.py [--shards 200] [--samples 1000] [--every 30] [--model null|mini]

Generates a pool, then captions and scores it, with a SIGKILL about every 30 seconds until both
commands have finished; then runs the same commands undisturbed. Reports the number of kills, checks
rows (in = ok + dropped + failed, no duplicate uids), compares all files, and reports the growth of
resident memory during the undisturbed captioning.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from samples import image_bytes, sample_members, tar_bytes

from capmix.storage.store import Store

TESTS = Path(__file__).parent.parent / "tests"
WARM = 0.2  # fraction of the run to ignore, while models load and caches fill


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--every", type=float, default=30.0)
    parser.add_argument("--model", choices=["null", "mini"], default="null")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_pool(folder / "pool", options.shards, options.samples)
        started = time.monotonic()
        kills = sum(
            disturbed(command, options.every)
            for command in commands(options.model, folder / "pool", folder / "killed")
        )
        seconds = time.monotonic() - started
        print(f"with {kills} kills: {seconds:.0f} s")
        started = time.monotonic()
        memory: list[tuple[float, float]] = []
        for command in commands(options.model, folder / "pool", folder / "whole"):
            undisturbed(command, memory if "caption" in command else [])
        print(f"undisturbed: {time.monotonic() - started:.0f} s")
        compare(folder / "whole", folder / "killed")
        check_rows(folder / "killed", options.shards * options.samples)
        print_slope(memory)


def commands(model: str, pool: Path, work: Path) -> list[list[str]]:
    if model == "null":
        script = [sys.executable, str(TESTS / "faults/one_stage.py")]
        return [[*script, stage, str(pool), str(work)] for stage in ("index", "caption", "score")]
    capmix = [sys.executable, "-m", "capmix"]
    place = [str(pool), "--work", str(work)]
    return [
        [*capmix, "caption", *place, "--source", "mini", "--model", "mini"],
        [*capmix, "score", *place, "--sources", "raw,mini", "--model", "mini"],
    ]


def disturbed(command: list[str], every: float) -> int:
    """Run a command, killing it repeatedly, until it finishes; return the number of kills."""
    kills = 0
    while True:
        process = start(command)
        try:
            code = process.wait(timeout=_jitter() * every)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        if code:
            sys.exit(f"{' '.join(command)} exited with {code}")
        return kills


def _jitter() -> float:
    return random.uniform(0.7, 1.3)  # noqa: S311


def undisturbed(command: list[str], memory: list[tuple[float, float]]) -> None:
    process = start(command)
    is_over = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, is_over, memory))
    watch.start()
    code = process.wait()
    is_over.set()
    watch.join()
    if code:
        sys.exit(f"{' '.join(command)} exited with {code}")


def start(command: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _watch(process: int, is_over: threading.Event, memory: list[tuple[float, float]]) -> None:
    started = time.monotonic()
    while not is_over.wait(1):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                memory.append((time.monotonic() - started, int(line.split()[1]) / 1024))


def write_pool(folder: Path, shards: int, samples: int) -> None:
    folder.mkdir(parents=True)
    pictures = [image_bytes(seed) for seed in range(97)]
    for shard in range(shards):
        members = []
        for row in range(samples):
            number = shard * samples + row
            sample = sample_members(f"{number:09d}", number, f"picture {number}")
            members += [(sample[0][0], pictures[number % len(pictures)]), *sample[1:]]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))


def compare(whole: Path, killed: Path) -> None:
    digests = [
        {str(p.relative_to(f)): _digest(p) for p in f.rglob("*") if p.is_file()}
        for f in (whole, killed)
    ]
    same = digests[0] == digests[1]
    print(f"{len(digests[0]):,} files, {'identical' if same else 'NOT IDENTICAL'}")
    if not same:
        sys.exit(1)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_rows(work: Path, expected: int) -> None:
    store = Store(str(work))
    totals: dict[str, int] = {}
    uids: dict[str, set[str]] = {}
    for part in store.parts(""):
        marker = store.read_marker(part)
        if marker is None:
            continue
        assert marker.rows_in == marker.counts.total, part
        folder = part.rpartition("/")[0]
        rows = set(store.read_table(f"{part}.parquet", ["uid"])["uid"].to_pylist())
        seen = uids.setdefault(folder, set())
        assert not rows & seen, f"{part}: a uid of another shard"
        seen |= rows
        totals[folder] = totals.get(folder, 0) + len(rows)
    print("; ".join(f"{folder}: {rows:,} uids" for folder, rows in sorted(totals.items())))
    assert set(totals.values()) == {expected}, totals


def print_slope(memory: list[tuple[float, float]]) -> None:
    seconds, size = np.array(memory).T
    warm = seconds > WARM * seconds[-1]
    slope = np.polyfit(seconds[warm], size[warm], 1)[0] * 60
    print(f"resident memory {size[warm].mean():.0f} MiB, {slope:+.2f} MiB a minute "
          f"over {seconds[-1] / 60:.1f} minutes")  # fmt: skip


if __name__ == "__main__":
    main()
