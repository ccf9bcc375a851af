"""Decide when a worker that keeps dying is no longer restarted."""

from collections import Counter
from dataclasses import dataclass, field

IN_A_ROW = 5


@dataclass
class Deaths:
    """Deaths of the workers of one run, by worker number.

    A worker is given up after IN_A_ROW deaths without a finished shard between them. The last
    remaining worker is not given up if it has ever finished a shard: in that case the shards cause
    the deaths, and the engine limits the attempts for each shard.
    """

    _in_a_row: Counter[int] = field(default_factory=Counter)
    _proven: set[int] = field(default_factory=set)
    _given_up: set[int] = field(default_factory=set)

    def answered(self, number: int) -> None:
        """Record that the worker has finished a shard."""
        self._in_a_row[number] = 0
        self._proven.add(number)

    def died(self, number: int, workers: int) -> bool:
        """Record a death, and return whether to restart the worker (one of `workers`)."""
        self._in_a_row[number] += 1
        is_last = not set(range(workers)) - self._given_up - {number}
        if self._in_a_row[number] >= IN_A_ROW and not (is_last and number in self._proven):
            self._given_up.add(number)
        return number not in self._given_up

    def left(self, workers: int) -> list[int]:
        """Return the numbers of the workers, out of `workers`, that are not given up."""
        return [number for number in range(workers) if number not in self._given_up]
