"""Soft and hard cap sampling: batches drawn without replacement, in which repeats become unlikely.

Soft Cap Sampling is from FLYT (arXiv 2503.08805). A batch is drawn without replacement: one item
after the other, each with probability softmax(logit) among those left. Then the logit of every
drawn item is reduced by a penalty, and the next batch is drawn.

Drawing without replacement is the same as giving item i an exponential clock of rate exp(logit_i)
and taking the items whose clocks ring first (Efraimidis and Spirakis, 2006; the logarithms of these
times are the Gumbel keys of Kool et al., 2019). To avoid 12.8 million clocks in each of 1,280
batches, the items that a batch draws with low probability share one clock, a Poisson process that
rings at the sum of their rates and chooses the item in proportion to the rates. The first ring of
an item is its own clock, so this is exact. Rates only decrease. Therefore the table of rates can be
older than the last batches: a ring of an item whose rate has decreased since is ignored with the
probability that makes up for it (thinning), which is exact too. Only speed depends on which items
share the clock and when the table is rebuilt.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from capmix.mix.sampling import CapRules

ITEMS_AT_ONCE = 1 << 20  # exponential keys computed at a time: 8 MB
ALL_CLOCKS = 8  # with fewer items per drawn one than this, each has a clock of its own
OWN_CLOCK = math.log(0.5)  # log of rate x time from which an item has a clock of its own
LEAST_USED = 0.6  # of the rings of the shared clock; if fewer are used, the table is rebuilt
MOST_RINGS = 8  # per drawn item, before all remaining items get clocks
LEAST_BLOCK = 64  # rings generated at a time


class RandomStream:
    """Uniform and exponential random numbers, a function of seed, batch number and position.

    They are made from the raw output of Philox, a counter-based generator whose output numpy keeps
    the same in all versions.
    """

    def __init__(self, seed: int, number: int):
        digest = hashlib.sha256(f"sample/{seed}/{number}".encode()).digest()
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))

    def uniform(self, count: int) -> np.ndarray:
        """Return `count` numbers in (0, 1), float64."""
        raw = self._bits.random_raw(count) >> np.uint64(12)
        found: np.ndarray = (raw + 0.5) * 2.0**-52
        return found

    def exponential(self, count: int) -> np.ndarray:
        """Return `count` exponential numbers of mean 1, float64, above 0."""
        found: np.ndarray = -np.log(self.uniform(count))
        return found


@dataclass(frozen=True)
class _Table:
    """The clocks at the time of a batch.

    `own` are the items that have a clock of their own. `cumulative`, float64 (N,), has the sums of
    the rates of the others, relative to exp(`shift`), and `times` how often each item had been
    drawn.
    """

    own: np.ndarray
    cumulative: np.ndarray
    shift: float
    times: np.ndarray


@dataclass
class _Rings:
    """Rings of the shared clock that draw an item: items, the logarithms of the times, and the
    number of rings including unused ones. `until` is the logarithm of the time generated so far."""

    items: list[np.ndarray]
    at: list[np.ndarray]
    total: int = 0
    used: int = 0
    elapsed: float = 0.0
    until: float = -math.inf


class CapSampler:
    """Draws batches from N items with `logits`, finite float32 or float64 (N,).

    `times` is how often each item was drawn, int32 (N,), and `alive` how many have not reached the
    cap. Needs about 20 bytes per item in addition to the logits.
    """

    def __init__(self, logits: np.ndarray, penalty: float, cap: int | None = None):
        self.times = np.zeros(len(logits), np.int32)
        self.alive = len(logits)
        self._logits, self._penalty = logits, penalty
        self._cap = np.iinfo(np.int32).max if cap is None else cap
        self._is_drawn = np.zeros(len(logits), bool)  # by the current batch
        self._log_time: float | None = None  # at which the last batch was complete
        self._table: _Table | None = None
        self._expected = LEAST_BLOCK

    def draw(self, size: int, random: RandomStream) -> np.ndarray:
        """Draw a batch of `size` <= `alive` distinct items; return their numbers, int64 (size,)."""
        if size == self.alive:
            drawn = np.flatnonzero(self.times < self._cap)
        elif self._log_time is None or len(self.times) <= ALL_CLOCKS * size:
            drawn, self._log_time = self._of_all(size, random)
        else:
            drawn = self._of_table(size, random)
        self.times[drawn] += 1
        self.alive -= int(np.count_nonzero(self.times[drawn] >= self._cap))
        return drawn

    def _now(self, items: np.ndarray | slice) -> np.ndarray:
        """Return the current logits, float64; -inf for items that have reached the cap."""
        times = self.times[items]
        now: np.ndarray = self._logits[items] - self._penalty * times
        now[times >= self._cap] = -math.inf
        return now

    def _of_all(self, size: int, random: RandomStream) -> tuple[np.ndarray, float]:
        """Draw `size` items that the current batch has not drawn, with a clock for each; also
        return the logarithm of the last one's time."""
        items, at = np.empty(0, np.int64), np.empty(0)
        for start in range(0, len(self.times), ITEMS_AT_ONCE):
            here = slice(start, start + ITEMS_AT_ONCE)
            keys = self._now(here)
            keys[self._is_drawn[here]] = -math.inf
            keys = np.log(random.exponential(len(keys))) - keys
            items = np.concatenate([items, np.arange(start, start + len(keys))])
            at = np.concatenate([at, keys])
            first = _smallest(at, size)
            items, at = items[first], at[first]
        return items, float(at.max())

    def _of_table(self, size: int, random: RandomStream) -> np.ndarray:
        """Draw a batch with the table of rates."""
        table = self._table = self._table or self._build()
        own_at = np.log(random.exponential(len(table.own))) - self._now(table.own)
        in_order = np.sort(own_at)
        rings, block = _Rings([table.own], [own_at]), self._expected
        known = 0
        while known < size and table.cumulative[-1] and rings.total < MOST_RINGS * size:
            self._ring(table, rings, block, random)
            known = rings.used + int(np.searchsorted(in_order, rings.until, side="right"))
            block = max(LEAST_BLOCK, size // 16)
        items, at = np.concatenate(rings.items), np.concatenate(rings.at)
        self._is_drawn[items[len(own_at) :]] = False
        if known >= size:
            first = _smallest(at, size)
            last = float(at[first].max())
            share = math.exp(min(last - rings.until, 0.0))
            self._expected = int(rings.total * share * 1.02 + 4 * math.sqrt(size)) + LEAST_BLOCK
            drawn: np.ndarray = items[first]
        else:  # clocks have no memory: the rest of the batch can start new ones
            drawn = items[at <= rings.until]
            self._is_drawn[drawn] = True
            rest, later = self._of_all(size - len(drawn), random)
            self._is_drawn[drawn] = False
            drawn, last = np.concatenate([drawn, rest]), float(np.logaddexp(rings.until, later))
        if known < size or rings.used < LEAST_USED * rings.total or len(own_at) > 4 * size:
            self._table = None
        self._log_time = last
        return drawn

    def _build(self) -> _Table:
        """Build the table: items that a batch draws with high probability get their own clocks."""
        now = self._now(slice(None))
        is_own = now > OWN_CLOCK - (self._log_time or 0.0)
        now[is_own] = -math.inf
        shift = float(now.max())
        now -= shift if math.isfinite(shift) else 0.0
        np.exp(now, out=now)
        np.cumsum(now, out=now)
        return _Table(np.flatnonzero(is_own), now, shift, self.times.copy())

    def _ring(self, table: _Table, rings: _Rings, count: int, random: RandomStream) -> None:
        """Add `count` rings of the shared clock."""
        rate = table.cumulative[-1]
        at = rings.elapsed + np.cumsum(random.exponential(count)) / rate
        places = random.uniform(count) * rate
        order = np.argsort(places)  # neighbours in the table are looked up together
        items = np.searchsorted(table.cumulative, places[order], side="right")
        # A product rounded up to the sum belongs to the last item that has a rate.
        over = items >= len(table.cumulative)
        items[over] = np.searchsorted(table.cumulative, rate, side="left")
        times = self.times[items]
        kept = np.exp(-self._penalty * (times - table.times[items]))
        is_used = (random.uniform(count) < kept) & (times < self._cap) & ~self._is_drawn[items]
        used, order = items[is_used], order[is_used]
        begins = np.flatnonzero(np.diff(used, prepend=-1))
        used, at_used = used[begins], at[order]
        if len(used):  # of several rings of an item, the first one draws it
            at_used = np.minimum.reduceat(at_used, begins)
        self._is_drawn[used] = True
        rings.items.append(used)
        rings.at.append(np.log(at_used) - table.shift)
        rings.total += count
        rings.used += len(used)
        rings.elapsed = float(at[-1])
        rings.until = math.log(rings.elapsed) - table.shift


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` smallest values, or of all if there are fewer."""
    if len(values) <= count:
        return np.arange(len(values))
    found: np.ndarray = np.argpartition(values, count - 1)[:count]
    return found


def draw_batches(sampler: CapSampler, rules: CapRules, seed: int) -> Iterator[int]:
    """Draw batches until `rules.draws` items are drawn or none is left; yield each batch's size.

    The result depends on the seed, the logits and their order.
    """
    left, number = rules.draws, 0
    while left and sampler.alive:
        size = min(rules.batch, left, sampler.alive)
        sampler.draw(size, RandomStream(seed, number))
        left -= size
        number += 1
        yield size
