"""Ways of doing the same work, timed in turns: each in a process of its own, one at a time.

The threads and the memory of one runtime slow another in the same process down, and a machine's
speed drifts; so the ways live beside each other, work round after round, and medians are compared.
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
    """`prepare(*arguments)` returns what is timed, which handles `images` images."""

    prepare: Callable[..., Callable[[], object]]
    arguments: tuple[Any, ...]
    images: int


def compare(ways: dict[str, Way], base: str, rounds: int = ROUNDS) -> None:
    """Time the ways and print images/s of each (median over rounds) and its ratio to `base`.

    A way that lacks a library is named and left out.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, way in ways.items():
        here, there = spawn.Pipe()
        spawn.Process(target=_work, args=(there, way)).start()
        there.close()  # so that a way that dies is noticed
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
    # What data loaders of the timed tools start their workers by, unless told otherwise.
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
