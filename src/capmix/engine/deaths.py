"""When a worker that dies again and again is not started once more."""

from collections import Counter
from dataclasses import dataclass, field

IN_A_ROW = 5


@dataclass
class Deaths:
    """Of the workers of one run, by number.

    A worker is given up after IN_A_ROW deaths without a finished shard between them. The last one
    that is left is not, if it has ever finished a shard: then it is shards that kill it, and each
    of them is tried a few times alone.
    """

    _in_a_row: Counter[int] = field(default_factory=Counter)
    _proven: set[int] = field(default_factory=set)
    _given_up: set[int] = field(default_factory=set)

    def answered(self, number: int) -> None:
        """The worker has finished a shard."""
        self._in_a_row[number] = 0
        self._proven.add(number)

    def died(self, number: int, workers: int) -> bool:
        """Whether the worker, one of `workers`, is to be started again."""
        self._in_a_row[number] += 1
        is_last = not set(range(workers)) - self._given_up - {number}
        if self._in_a_row[number] >= IN_A_ROW and not (is_last and number in self._proven):
            self._given_up.add(number)
        return number not in self._given_up

    def left(self, workers: int) -> list[int]:
        """Those of `workers` that are not given up."""
        return [number for number in range(workers) if number not in self._given_up]
