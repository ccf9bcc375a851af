"""Time several ways of doing the same work, alternating, each in a separate process.

In one process, the threads and memory of one runtime would slow down another. As the speed of a
host drifts, the processes stay alive and take turns for several rounds, and medians are compared.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

ROUNDS = 3


@dataclass(frozen=True)
class Way:
    """A way: `prepare(*arguments)` returns the function to time, which processes `images`
    images."""

    prepare: Callable[..., Callable[[], object]]
    arguments: tuple[Any, ...]
    images: int


def compare(ways: dict[str, Way], base: str, rounds: int = ROUNDS) -> None:
    """Time the ways; print the images/s of each and the ratio to `base`, and the CPU time of an
    image with its ratio. All are medians over rounds.

    A way whose libraries are not installed is reported and skipped.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, way in ways.items():
        here, there = spawn.Pipe()
        spawn.Process(target=_work, args=(there, way)).start()
        there.close()  # otherwise the death of the process would go unnoticed
        problem = here.recv()
        if problem:
            print(f"{name:<34} not run: {problem}", flush=True)
        else:
            pipes[name] = here
    wall: dict[str, list[float]] = {name: [] for name in pipes}
    cpu: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send("go")
            elapsed, used = pipe.recv()
            wall[name].append(elapsed / ways[name].images)
            cpu[name].append(used / ways[name].images)
    for pipe in pipes.values():
        pipe.send(None)
    first, first_cpu = (statistics.median(found[base]) for found in (wall, cpu))
    print(f"{'':<34} {'':16}  x {base}")
    for name in pipes:
        one, one_cpu = (statistics.median(found[name]) for found in (wall, cpu))
        rate = f"{1 / one:7.2f} images/s  {first / one:5.2f} x"
        print(f"{name:<34} {rate}  {one_cpu:8.3f} CPU s/image  {first_cpu / one_cpu:5.2f} x")


def _work(pipe: Connection, way: Way) -> None:
    # The default start method of the data loaders' workers in the timed tools.
    multiprocessing.set_start_method("fork", force=True)
    try:
        run = way.prepare(*way.arguments)
    except ImportError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while pipe.recv():
        started, used = time.perf_counter(), _cpu_seconds()
        run()
        pipe.send((time.perf_counter() - started, _cpu_seconds() - used))


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])
