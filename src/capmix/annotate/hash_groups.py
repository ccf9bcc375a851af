"""Groups of near-duplicate hashes: connected components at a Hamming distance of at most d.

Exact without comparing all pairs. If 64 bits are cut into d + a bands, two hashes that differ in at
most d bits agree in at least a bands (pigeonhole principle). So for each choice of a bands, the
distinct hashes are sorted by these bands, and those with equal bands are compared. The fewest bands
are used whose bits tell the hashes apart.

Equal hashes are merged first, so that millions of blank images cost one sort. Many distinct hashes
with equal bands are compared last, by the same method on their other bits, and only if they are not
in one group by then.
"""

from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np

BITS = 64
MOST = 2_048  # distinct hashes with equal bands that are compared pair by pair
CHUNK = 1 << 18  # hashes compared at once
SPARE_BITS = 3  # about 2^SPARE_BITS hashes may have equal bands
MOST_CHOSEN = 4  # bands
MAX_DISTANCE = 8
LONG_RUN = 32  # hashes
LOOK_UPS = (1, 4, 16, 64, 256, 1024)  # shifts before which groups are looked up


def hash_groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Return the group of each hash, int64 (N,): the smallest row number of the group.

    `hashes` are uint64 (N,). Two rows are in a group if their hashes differ in at most `distance`
    bits (0 to MAX_DISTANCE), or if a chain of such rows connects them.
    """
    if not len(hashes):
        return np.zeros(0, np.int64)
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    groups = _Groups(len(distinct))
    if distance:
        numbers = np.arange(len(distinct), dtype=groups.kind)
        _join_near(_Hashes(distinct, numbers, BITS), distance, groups)
    roots = groups.find(np.arange(len(distinct)))
    smallest = first.copy()
    np.minimum.at(smallest, roots, first)
    found: np.ndarray = smallest[roots][inverse]
    return found


class _Groups:
    """Disjoint sets of the numbers 0 to N - 1. The root of a set is its smallest number."""

    def __init__(self, count: int):
        self.kind = np.int32 if count < 2**31 else np.int64
        self._parent = np.arange(count, dtype=self.kind)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Return the roots of some numbers, and shorten their paths."""
        roots: np.ndarray = self._parent[numbers]
        while True:
            further = self._parent[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        self._parent[numbers] = roots
        return roots

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the sets of each pair."""
        while len(one):
            one, other = self.find(one), self.find(other)
            are_apart = one != other
            low = np.minimum(one, other)[are_apart]
            high = np.maximum(one, other)[are_apart]
            np.minimum.at(self._parent, high, low)
            one, other = low, high


class _Hashes(NamedTuple):
    """Distinct hashes of `width` bits, uint64 (n,), and their numbers in the groups."""

    values: np.ndarray
    numbers: np.ndarray
    width: int


class _Key(NamedTuple):
    """A permutation of `width` bits that puts some bands on top: `bits` of them.

    `moves` are the bands in their new order, from the top: shift and width of each.
    """

    width: int
    bits: int
    moves: tuple[tuple[int, int], ...]

    def permuted(self, values: np.ndarray) -> np.ndarray:
        found, top = np.zeros_like(values), self.width
        for shift, width in self.moves:
            top -= width
            found |= ((values >> np.uint64(shift)) & _mask(width)) << np.uint64(top)
        return found


class _Runs(NamedTuple):
    """Hashes in the order of a key, and start and size of each run of two or more equal keys."""

    hashes: _Hashes
    starts: np.ndarray
    sizes: np.ndarray


def _join_near(hashes: _Hashes, distance: int, groups: _Groups) -> None:
    """Join the groups of all pairs of near hashes."""
    hashes = _packed(hashes)
    # So few bits allow for few hashes, and some bands would be empty.
    most = MOST if hashes.width >= distance + MOST_CHOSEN else len(hashes.values)
    crowded = []
    for key in _keys(hashes.width, distance, len(hashes.values)):
        runs = _runs(hashes, key)
        few = runs.sizes <= most
        if not few.all():
            crowded.append(key)
        _compare(_Runs(runs.hashes, runs.starts[few], runs.sizes[few]), distance, groups)
    for key in crowded:
        runs, free = _runs(hashes, key), key.width - key.bits
        many = runs.sizes > most
        for start, size in zip(runs.starts[many], runs.sizes[many], strict=True):
            some = slice(start, start + size)
            numbers = runs.hashes.numbers[some]
            if len(np.unique(groups.find(numbers))) > 1:
                low = runs.hashes.values[some] & _mask(free)
                _join_near(_Hashes(low, numbers, free), distance, groups)


def _packed(hashes: _Hashes) -> _Hashes:
    """Leave out the bits in which no two hashes differ."""
    values, _, width = hashes
    differ = int(np.bitwise_or.reduce(values ^ values[0]))
    moves = tuple((bit, 1) for bit in reversed(range(width)) if differ >> bit & 1)
    if len(moves) == width:
        return hashes
    return hashes._replace(values=_Key(len(moves), 0, moves).permuted(values), width=len(moves))


def _keys(width: int, distance: int, count: int) -> list[_Key]:
    """Return the keys whose equality finds all pairs of `count` hashes of `width` bits."""
    wanted = min(count.bit_length() - SPARE_BITS, width)
    chosen = 1
    while chosen < MOST_CHOSEN and chosen * width // (distance + chosen) < wanted:
        chosen += 1
    ends = np.linspace(0, width, distance + chosen + 1).astype(int).tolist()
    bands = [(start, end - start) for start, end in pairwise(ends)]
    keys = []
    for some in combinations(range(len(bands)), chosen):
        top = [bands[i] for i in some]
        rest = [band for i, band in enumerate(bands) if i not in some]
        keys.append(_Key(width, sum(size for _, size in top), (*top, *rest)))
    return keys


def _runs(hashes: _Hashes, key: _Key) -> _Runs:
    values = key.permuted(hashes.values)
    order = np.argsort(values)
    values = values[order]
    top = values >> np.uint64(key.width - key.bits)
    starts = np.concatenate([[0], np.flatnonzero(top[1:] != top[:-1]) + 1])
    sizes = np.diff(starts, append=len(values))
    ordered = _Hashes(values, hashes.numbers[order], hashes.width)
    return _Runs(ordered, starts[sizes > 1], sizes[sizes > 1])


def _compare(runs: _Runs, distance: int, groups: _Groups) -> None:
    """Join the near pairs within each run, in chunks of about CHUNK hashes.

    Runs that are in one group already are left out; this is looked up only where runs are long.
    """
    (values, numbers, _), starts, sizes = runs
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.arange(CHUNK, int(sizes.sum()) + 1, CHUNK))
    for some in np.split(np.arange(len(sizes)), cuts):
        if not len(some):
            continue
        sizes_of = sizes[some]
        begins = np.cumsum(sizes_of) - sizes_of
        run = np.repeat(np.arange(len(some)), sizes_of)
        places = (starts[some] - begins)[run] + np.arange(len(run))
        left = (sizes_of + begins)[run] - np.arange(len(run)) - 1
        members = numbers[places]
        for shift in range(1, int(sizes_of.max())):
            is_inside = left >= shift
            if shift in LOOK_UPS and sizes_of.mean() > LONG_RUN:
                roots = groups.find(members)
                lowest = np.minimum.reduceat(roots, begins)
                is_inside &= (lowest != np.maximum.reduceat(roots, begins))[run]
            places, left, run = places[is_inside], left[is_inside], run[is_inside]
            if not len(places):
                break
            others = places + shift
            is_near = np.bitwise_count(values[places] ^ values[others]) <= distance
            groups.join(numbers[places[is_near]], numbers[others[is_near]])


def _mask(width: int) -> np.uint64:
    return np.uint64((1 << width) - 1)
