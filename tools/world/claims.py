"""The paper's claims: what must be measured for each to appear here, and the verdicts.

The criteria of CLAIMS were committed before the results of any grid were looked at, those of
EXPLORATORY after the first results. A difference is that of means over seeds, with Welch's 95%
interval; a ratio is the same on logarithms. A claim appears if the whole interval is on its side of
the bound, does not appear if the whole interval is on the other side, and is undecided otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import mean, variance
from typing import Literal

from scipy.stats import t as students_t

Verdict = Literal["appears", "does not appear", "undecided", "not measured", "reported"]
Metric = tuple[str, str]  # evaluation set, name
Values = Mapping[tuple[str, Metric], Sequence[float]]  # over seeds, by recipe and metric
VERDICTS: tuple[Verdict, ...] = ("not measured", "does not appear", "undecided")  # in `all_of`
CONFIDENCE = 0.95
ZERO_SHOT: Metric = ("world-classes", "acc1")
RETRIEVAL: Metric = ("world-pairs", "main_metric")
WEB_RETRIEVAL: Metric = ("world-pairs-web", "main_metric")  # of texts as on the web
METRICS = {ZERO_SHOT: "accuracy", RETRIEVAL: "retrieval", WEB_RETRIEVAL: "retrieval, web texts"}
BOTH = (ZERO_SHOT, RETRIEVAL)
MIX, FILTERED, ORACLE = "raw-top30+coca-above", "raw-top30", "oracle-true"
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
        return "does not appear" if self.high < bound else "undecided"


@dataclass(frozen=True)
class Claim:
    """A comparison of two recipes: in each metric, their difference, or ratio, is above `bound`."""

    name: str
    better: str
    worse: str
    metrics: tuple[Metric, ...] = (ZERO_SHOT,)
    bound: float = 0.0
    is_ratio: bool = False


CLAIMS = (
    Claim("filtering over raw", FILTERED, "raw", BOTH),
    Claim("mixing over filtering", MIX, FILTERED, BOTH),
    Claim("mixing over synthetic only", MIX, "coca"),
    Claim("retrieval at twice raw's", MIX, "raw", (RETRIEVAL,), 2.0, True),
    Claim("synthetic only over raw", "coca", "raw", (RETRIEVAL,)),
)
# Without these differences, the ones above mean nothing.
CONTROLS = (
    Claim("texts matter: raw over shuffled raw", "raw", "control-raw-shuffled"),
    Claim("scores matter: top over random", FILTERED, "control-raw-random30"),
    Claim("the noise is not too easy: true texts over filtering", ORACLE, FILTERED),
    Claim("room above: true texts over the mix", ORACLE, MIX),
)
# Of the studies: the mix cut at random to the size of the filtered raw texts.
AT_EQUAL_SIZE = (Claim("mixing over filtering at equal size", MATCHED, FILTERED, BOTH),)
STRICT = "raw-top10+coca-above"
EXPLORATORY = (
    Claim("mixing at a stricter threshold over filtering", STRICT, FILTERED, BOTH),
    Claim("synthetic only over filtering", "coca", FILTERED, BOTH),
    Claim("mixing over filtering, tested on web texts", MIX, FILTERED, (WEB_RETRIEVAL,)),
    Claim("synthetic only over raw, tested on web texts", "coca", "raw", (WEB_RETRIEVAL,)),
)
# Differences that are compared between pools. Damaged images are left out, or as many at random: in
# a small pool, whose images repeat most, any loss of images costs more.
OF_SCALE = (
    Claim("image quality matters more at scale", UNDAMAGED, THINNED),
    Claim("mixing over filtering pays more at scale (exploratory)", MIX, FILTERED, BOTH),
)
ORDERED = ("raw", FILTERED, MIX)  # with both losses


@dataclass(frozen=True)
class Judged:
    """A claim's verdict in a grid, with what was compared.

    `metric` is empty for what is no metric of a run; `low` and `high` are None for what was counted
    exactly.
    """

    claim: str
    grid: str
    metric: str
    compared: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def judged(values: Values, grid: str, claims: Sequence[Claim] = CLAIMS) -> list[Judged]:
    """Judge comparisons of two recipes, and claims of several metrics as a whole.

    A comparison is "not measured" if one of its recipes has fewer than two values.
    """
    rows: list[Judged] = []
    for claim in claims:
        of_claim = [_compared(values, grid, claim, metric) for metric in claim.metrics]
        rows += of_claim
        if len(of_claim) > 1:
            rows += all_of(claim.name, of_claim)
    return rows


def _compared(values: Values, grid: str, claim: Claim, metric: Metric) -> Judged:
    both = [values.get((name, metric), []) for name in (claim.better, claim.worse)]
    of_means = "ratio of geometric means: " if claim.is_ratio else ""
    compared = f"{of_means}{claim.better} {'/' if claim.is_ratio else '-'} {claim.worse}"
    if min(map(len, both)) < 2:
        return _unmeasured(claim.name, grid, METRICS[metric], compared)
    found = (ratio if claim.is_ratio else difference)(*both)
    return _of_interval(claim.name, grid, METRICS[metric], compared, found, claim.bound)


def curves_cross(rows: Sequence[Judged], scales: str) -> list[Judged]:
    """Judge whether a comparison has opposite signs in two pools.

    `rows` are those of `judged` of all pools. It is undecided if it is in one pool at least, and
    left out if one pool has it.
    """
    verdicts: dict[tuple[str, str], list[Verdict]] = {}
    for row in rows:
        if row.low is not None:
            verdicts.setdefault((row.claim, row.metric), []).append(row.verdict)
    crossed = []
    for (claim, metric), found in verdicts.items():
        if len(found) > 1:
            verdict: Verdict = "undecided" if "undecided" in found else "does not appear"
            verdict = "appears" if {"appears", "does not appear"} <= set(found) else verdict
            crossed.append(Judged("curves cross", scales, metric, claim, None, None, None, verdict))
    return crossed


def diversity_falls(counts: Mapping[str, Mapping[str, int]]) -> list[Judged]:
    """Judge whether synthetic texts have fewer distinct trigrams, ever fewer in larger pools.

    `counts` are the trigrams by source, by pool, the smallest pool first. True texts have no noise,
    so their ratio is reported beside it.
    """
    ratios = {pool: some["coca"] / some["raw"] for pool, some in counts.items()}
    rows = [
        _exact("synthetic texts less diverse", pool, "trigrams: coca / raw", value, value < 1)
        for pool, value in ratios.items()
    ]
    for pool, some in counts.items():
        for source in ("true", "generic"):
            if source in some:
                compared, value = f"trigrams: coca / {source}", some["coca"] / some[source]
                rows.append(_reported("synthetic texts less diverse", pool, "", compared, value))
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
            rows.append(_reported("best fraction", grid, "accuracy", compared, found[best]))
    return rows


def benchmark_misleads(
    values: Values, grid: str, benchmark: str, scores: Mapping[str, float]
) -> list[Judged]:
    """Judge for each pair of captioners whether that of the higher score gives the worse mix.

    The order of captioners by `benchmark` differs from that by usefulness if it does for one pair.
    """
    rows: list[Judged] = []
    metric = METRICS[ZERO_SHOT]
    for one, other in combinations(sorted(scores, key=lambda name: -scores[name]), 2):
        compared = f"mixes of {other} ({benchmark} {scores[other]:.2f}) - {one} ({scores[one]:.2f})"
        names = [f"{FILTERED}+{name}-above" for name in (other, one)]
        both = [values.get((name, ZERO_SHOT), []) for name in names]
        claim = f"the captioner of the lower {benchmark} is more useful"
        if min(map(len, both)) < 2:
            rows.append(_unmeasured(claim, grid, metric, compared))
        else:
            rows.append(_of_interval(claim, grid, metric, compared, difference(*both)))
    return [*rows, *_any_of(f"{benchmark} does not predict usefulness", rows)]


def pays_more(pools: Mapping[str, Values], claims: Sequence[Claim]) -> list[Judged]:
    """Judge whether a difference is larger in the largest pool than in the smallest.

    `pools` are the values by grid, the smallest pool first; those without both recipes are skipped.
    """
    return [_growth(pools, claim, metric) for claim in claims for metric in claim.metrics]


def _growth(pools: Mapping[str, Values], claim: Claim, metric: Metric) -> Judged:
    compared = f"({claim.better} - {claim.worse}), large - small"
    both = {
        grid: (values.get((claim.better, metric), []), values.get((claim.worse, metric), []))
        for grid, values in pools.items()
    }
    grids = [grid for grid, groups in both.items() if min(map(len, groups)) > 1]
    if len(grids) < 2:
        return _unmeasured(claim.name, " and ".join(pools), METRICS[metric], compared)
    small, large = grids[0], grids[-1]
    (better, worse), (better_before, worse_before) = both[large], both[small]
    found = contrast([(1, better), (-1, worse), (-1, better_before), (1, worse_before)])
    return _of_interval(claim.name, f"{small} and {large}", METRICS[metric], compared, found)


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
            rows.append(_unmeasured(claim, grid, METRICS[ZERO_SHOT], compared))
            continue
        of_clip, found = difference(*groups[:2]), difference(*groups[2:])
        compared = f"{compared} (CLIP's loss: {of_clip.value:.3f})"
        verdict = _agreement(of_clip.verdict(), found.verdict())
        metric = METRICS[ZERO_SHOT]
        rows.append(
            Judged(claim, grid, metric, compared, found.value, found.low, found.high, verdict)
        )
    return [*rows, *all_of("SigLIP's loss gives the same order of all", rows)]


def _agreement(one: Verdict, other: Verdict) -> Verdict:
    if "undecided" in (one, other):
        return "undecided"
    return "appears" if one == other else "does not appear"


def covers_more(mixed: float, filtered: float, grid: str) -> list[Judged]:
    """Judge whether the mix, cut to the size of filtering, has more topics in effect.

    The effective number is the exponential of the entropy. It is biased by the number of texts,
    hence the equal size.
    """
    compared = f"effective topics: {MATCHED} ({mixed:.1f}) - {FILTERED} ({filtered:.1f})"
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
    if verdicts == {"does not appear"}:
        return [_joined(claim, rows, "does not appear")]
    return [_joined(claim, rows, "appears" if "appears" in verdicts else "undecided")]


def _joined(claim: str, rows: Sequence[Judged], verdict: Verdict) -> Judged:
    compared = f"{len(rows)} comparisons"
    return Judged(claim, rows[0].grid, "all", compared, None, None, None, verdict)


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
    claim: str, grid: str, metric: str, compared: str, found: Interval, bound: float = 0.0
) -> Judged:
    verdict = found.verdict(bound)
    return Judged(claim, grid, metric, compared, found.value, found.low, found.high, verdict)


def _exact(claim: str, grid: str, compared: str, value: float, holds: bool) -> Judged:
    verdict: Verdict = "appears" if holds else "does not appear"
    return Judged(claim, grid, "", compared, value, None, None, verdict)


def _reported(claim: str, grid: str, metric: str, compared: str, value: float) -> Judged:
    return Judged(claim, grid, metric, compared, value, None, None, "reported")


def _unmeasured(claim: str, grid: str, metric: str, compared: str) -> Judged:
    return Judged(claim, grid, metric, compared, None, None, None, "not measured")
