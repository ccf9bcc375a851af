"""The paper's claims: what must be measured for each to appear here, and the verdicts.

The criteria were committed before any run of a grid. A difference is that of means over seeds,
with Welch's 95% interval; a ratio is the same on logarithms. A claim appears if the whole interval
is on its side of the bound, does not if the whole interval is on the other side, and cannot be told
otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import mean, variance
from typing import Literal

from scipy.stats import t as students_t

Verdict = Literal["appears", "does not", "cannot be told", "not measured", "reported"]
Metric = tuple[str, str]  # evaluation set, name
Values = Mapping[tuple[str, Metric], Sequence[float]]  # over seeds, by recipe and metric
VERDICTS: tuple[Verdict, ...] = ("not measured", "does not", "cannot be told")  # in `all_of`
CONFIDENCE = 0.95
ZERO_SHOT: Metric = ("world-classes", "acc1")
RETRIEVAL: Metric = ("world-pairs", "main_metric")
MIX, FILTERED, ORACLE = "raw-top30+coca-above", "raw-top30", "oracle-true"
TESTS = ("classification", "retrieval")
MATCHED, UNDAMAGED, THINNED = "matched", "undamaged", "thinned"


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def verdict(self, bound: float = 0.0) -> Verdict:
        """Say whether the estimate is above the bound."""
        if self.low > bound:
            return "appears"
        return "does not" if self.high < bound else "cannot be told"


@dataclass(frozen=True)
class Claim:
    """A comparison of two recipes in a metric: their difference, or ratio, is above `bound`."""

    name: str
    better: str
    worse: str
    metric: Metric
    bound: float = 0.0
    is_ratio: bool = False


CLAIMS = (
    Claim("filtering over raw, classification", FILTERED, "raw", ZERO_SHOT),
    Claim("filtering over raw, retrieval", FILTERED, "raw", RETRIEVAL),
    Claim("mixing over filtering, classification", MIX, FILTERED, ZERO_SHOT),
    Claim("mixing over filtering, retrieval", MIX, FILTERED, RETRIEVAL),
    Claim("mixing over synthetic only, classification", MIX, "coca", ZERO_SHOT),
    Claim("retrieval at twice raw's", MIX, "raw", RETRIEVAL, 2.0, True),
    Claim("synthetic only over raw, retrieval", "coca", "raw", RETRIEVAL),
    # Controls: without these differences, the ones above mean nothing.
    Claim("texts matter: raw over shuffled raw", "raw", "control-raw-shuffled", ZERO_SHOT),
    Claim("scores matter: top over random", FILTERED, "control-raw-random30", ZERO_SHOT),
    Claim("the noise is not too easy: true texts over filtering", ORACLE, FILTERED, ZERO_SHOT),
    Claim("room above: true texts over the mix", ORACLE, MIX, ZERO_SHOT),
)
# Of the studies: the mix cut at random to the size of the filtered raw texts.
AT_EQUAL_SIZE = (
    Claim("mixing over filtering at equal size, classification", MATCHED, FILTERED, ZERO_SHOT),
    Claim("mixing over filtering at equal size, retrieval", MATCHED, FILTERED, RETRIEVAL),
)
ORDERED = ("raw", FILTERED, MIX)  # with both losses


@dataclass(frozen=True)
class Judged:
    """A claim's verdict in a grid, with what was compared.

    `low` and `high` are None for what was counted exactly.
    """

    claim: str
    grid: str
    compared: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def judged(values: Values, grid: str, claims: Sequence[Claim] = CLAIMS) -> list[Judged]:
    """Judge comparisons of two recipes; "not measured" if one has fewer than two values."""
    rows = []
    for claim in claims:
        both = [values.get((name, claim.metric), []) for name in (claim.better, claim.worse)]
        compared = f"{claim.better} {'/' if claim.is_ratio else '-'} {claim.worse}"
        if min(map(len, both)) < 2:
            rows.append(_unmeasured(claim.name, grid, compared))
            continue
        found = (ratio if claim.is_ratio else difference)(*both)
        rows.append(_of_interval(claim.name, grid, compared, found, claim.bound))
    return rows


def in_both(rows: Sequence[Judged]) -> list[Judged]:
    """Join the claims of a grid that are about classification and about retrieval."""
    both = "filtering over raw", "mixing over filtering", "mixing over filtering at equal size"
    joined: list[Judged] = []
    for claim in both:
        parts = [row for row in rows if row.claim in (f"{claim}, {one}" for one in TESTS)]
        if len(parts) == len(TESTS):
            joined += all_of(f"{claim}, both", parts)
    return joined


def diversity_falls(counts: Mapping[str, tuple[int, int]]) -> list[Judged]:
    """Judge whether synthetic texts have fewer distinct trigrams, ever fewer in larger pools.

    `counts` are the trigrams of synthetic and of raw texts by pool, the smallest pool first.
    """
    ratios = {pool: synthetic / raw for pool, (synthetic, raw) in counts.items()}
    rows = [
        _exact("synthetic texts less diverse", pool, "trigrams: coca / raw", value, value < 1)
        for pool, value in ratios.items()
    ]
    if len(ratios) > 1:
        falls = all(before > after for before, after in pairwise(ratios.values()))
        (first, start), *_, (last, end) = ratios.items()
        pools, compared = f"{first} to {last}", "change of the ratio"
        rows.append(_exact("the gap in diversity grows", pools, compared, end - start, falls))
    return rows


def best_fractions(values: Values, grid: str, fractions: Sequence[int]) -> list[Judged]:
    """Report the accuracy of filtering and mixing by percentage; it is no claim to judge."""
    rows = []
    for name in ("raw-top{}", "raw-top{}+coca-above"):
        found = {
            fraction: mean(some)
            for fraction in fractions
            if (some := values.get((name.format(fraction), ZERO_SHOT)))
        }
        if len(found) > 1:
            best = max(found, key=lambda fraction: found[fraction])
            compared = f"{name.format(best)}, best of {', '.join(map(str, found))}%"
            value = found[best]
            rows.append(Judged("best fraction", grid, compared, value, None, None, "reported"))
    return rows


def benchmark_misleads(
    values: Values, grid: str, cider: Mapping[str, float], metric: Metric = ZERO_SHOT
) -> list[Judged]:
    """Judge for each pair of captioners whether that of the higher CIDEr gives the worse mix.

    The order of captioners differs if it does for one pair.
    """
    rows: list[Judged] = []
    for one, other in combinations(sorted(cider, key=lambda name: -cider[name]), 2):
        compared = f"mixes of {other} (CIDEr {cider[other]:.2f}) - {one} ({cider[one]:.2f})"
        names = [f"{FILTERED}+{name}-above" for name in (other, one)]
        both = [values.get((name, metric), []) for name in names]
        claim = "the captioner of the lower CIDEr is more useful"
        if min(map(len, both)) < 2:
            rows.append(_unmeasured(claim, grid, compared))
        else:
            rows.append(_of_interval(claim, grid, compared, difference(*both)))
    return [*rows, *_any_of("CIDEr does not tell usefulness", rows)]


def quality_matters_more(small: Values, large: Values, grids: str) -> list[Judged]:
    """Judge whether leaving out damaged images pays more in the large pool than in the small.

    The comparison is with the same number of images left out at random: in a small pool, whose
    images repeat most, any loss of images costs more.
    """
    names = ((UNDAMAGED, 1), (THINNED, -1))
    groups = [
        (sign * of, some.get((name, ZERO_SHOT), []))
        for some, of in ((large, 1), (small, -1))
        for name, sign in names
    ]
    claim, compared = (
        "image quality matters more at scale",
        f"({UNDAMAGED} - {THINNED}), large - small",
    )
    if min(len(some) for _, some in groups) < 2:
        return [_unmeasured(claim, grids, compared)]
    return [_of_interval(claim, grids, compared, contrast(groups))]


def same_order(clip: Values, siglip: Values, grid: str) -> list[Judged]:
    """Judge for each pair of ORDERED whether both losses put it in the same order.

    The interval is that of SigLIP's difference.
    """
    rows: list[Judged] = []
    for one, other in combinations(ORDERED, 2):
        claim, compared = "SigLIP's loss gives the same order", f"{other} - {one}"
        groups = [
            some.get((name, ZERO_SHOT), []) for some in (clip, siglip) for name in (other, one)
        ]
        if min(map(len, groups)) < 2:
            rows.append(_unmeasured(claim, grid, compared))
            continue
        of_clip, found = difference(*groups[:2]), difference(*groups[2:])
        compared = f"{compared} (CLIP's loss: {of_clip.value:.3f})"
        verdict = _agreement(of_clip.verdict(), found.verdict())
        rows.append(Judged(claim, grid, compared, found.value, found.low, found.high, verdict))
    return [*rows, *all_of("SigLIP's loss gives the same order of all", rows)]


def _agreement(one: Verdict, other: Verdict) -> Verdict:
    if "cannot be told" in (one, other):
        return "cannot be told"
    return "appears" if one == other else "does not"


def covers_more(mixed: float, filtered: float, grid: str) -> list[Judged]:
    """Judge whether the mix has a larger effective number of topics than filtering.

    This number, the exponential of the entropy, does not grow with the number of texts alone.
    """
    compared = f"effective topics: {MIX} ({mixed:.1f}) - {FILTERED} ({filtered:.1f})"
    return [_exact("topic coverage", grid, compared, mixed - filtered, mixed > filtered)]


def all_of(claim: str, rows: Sequence[Judged]) -> list[Judged]:
    """Join the verdicts of a grid: the claim appears if all do; else the first of VERDICTS."""
    verdicts = {row.verdict for row in rows}
    for verdict in VERDICTS:
        if verdict in verdicts:
            return [_joined(claim, rows, verdict)]
    return [_joined(claim, rows, "appears")]


def _any_of(claim: str, rows: Sequence[Judged]) -> list[Judged]:
    verdicts = {row.verdict for row in rows}
    if verdicts == {"does not"}:
        return [_joined(claim, rows, "does not")]
    return [_joined(claim, rows, "appears" if "appears" in verdicts else "cannot be told")]


def _joined(claim: str, rows: Sequence[Judged], verdict: Verdict) -> Judged:
    return Judged(claim, rows[0].grid, f"{len(rows)} comparisons", None, None, None, verdict)


def difference(better: Sequence[float], worse: Sequence[float]) -> Interval:
    """Return the difference of two means with Welch's interval. Needs two values of each."""
    return contrast([(1, better), (-1, worse)])


def contrast(groups: Sequence[tuple[int, Sequence[float]]]) -> Interval:
    """Return a signed sum of means with its interval, without assuming equal variances.

    The degrees of freedom are Welch's and Satterthwaite's. Needs two values of each group.
    """
    value = sum(sign * mean(some) for sign, some in groups)
    parts = [(variance(some) / len(some), len(some) - 1) for _, some in groups]
    error = sum(part for part, _ in parts)
    if error == 0:
        return Interval(value, value, value)
    freedom = error**2 / sum(part**2 / free for part, free in parts)
    half = float(students_t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(error)
    return Interval(value, value - half, value + half)


def ratio(better: Sequence[float], worse: Sequence[float]) -> Interval:
    """Return the ratio of two geometric means. With a value of 0, its interval is unbounded."""
    if min(*better, *worse) <= 0:
        return Interval(math.nan, -math.inf, math.inf)
    found = difference([math.log(one) for one in better], [math.log(one) for one in worse])
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def _of_interval(
    claim: str, grid: str, compared: str, found: Interval, bound: float = 0.0
) -> Judged:
    verdict = found.verdict(bound)
    return Judged(claim, grid, compared, found.value, found.low, found.high, verdict)


def _exact(claim: str, grid: str, compared: str, value: float, holds: bool) -> Judged:
    return Judged(claim, grid, compared, value, None, None, "appears" if holds else "does not")


def _unmeasured(claim: str, grid: str, compared: str) -> Judged:
    return Judged(claim, grid, compared, None, None, None, "not measured")
