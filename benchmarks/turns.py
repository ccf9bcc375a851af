"""Time several ways of doing the same work, alternating, each in a separate process.

In one process, the threads and memory of one runtime would slow down another. As the speed of a
host drifts, the processes stay alive and take turns for several rounds, and medians are compared.
"""

import multiprocessing
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
    """Time the ways; print the images/s of each (median over rounds) and the ratio to `base`.

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
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send("go")
            rates[name].append(ways[name].images / pipe.recv())
    for pipe in pipes.values():
        pipe.send(None)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in medians.items():
        print(f"{name:<34} {rate:7.2f} images/s  {rate / medians[base]:5.2f} x {base}", flush=True)


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
        started = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - started)
