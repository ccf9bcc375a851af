"""The paper's claims: what must be measured for each to appear here, and the verdicts.

The criteria were committed before any run of the grid. A difference is that of means over seeds,
with Welch's 95% interval; a ratio is the same on logarithms. A claim appears if the whole interval
is on its side of the bound, does not if the whole interval is on the other side, and cannot be told
otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any, Literal

import pyarrow.parquet as pq
from scipy.stats import t as students_t

Verdict = Literal["appears", "does not", "cannot be told"]
CONFIDENCE = 0.95
ZERO_SHOT = ("world-classes", "acc1")
RETRIEVAL = ("world-pairs", "main_metric")


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def verdict(self, bound: float) -> Verdict:
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
    metric: tuple[str, str]
    bound: float = 0.0
    is_ratio: bool = False


CLAIMS = (
    Claim("filtering over raw, classification", "raw-top30", "raw", ZERO_SHOT),
    Claim("filtering over raw, retrieval", "raw-top30", "raw", RETRIEVAL),
    Claim("mixing over filtering, classification", "raw-top30+coca-above", "raw-top30", ZERO_SHOT),
    Claim("mixing over filtering, retrieval", "raw-top30+coca-above", "raw-top30", RETRIEVAL),
    Claim("mixing over synthetic only, classification", "raw-top30+coca-above", "coca", ZERO_SHOT),
    Claim("retrieval at twice raw's", "raw-top30+coca-above", "raw", RETRIEVAL, 2.0, True),
    Claim("synthetic-only retrieval over raw", "coca", "raw", RETRIEVAL),
    # Controls: without these differences, the ones above mean nothing.
    Claim("texts matter: raw over shuffled raw", "raw", "control-raw-shuffled", ZERO_SHOT),
    Claim("scores matter: top over random", "raw-top30", "control-raw-random30", ZERO_SHOT),
    Claim("room above: true texts over the mix", "oracle-true", "raw-top30+coca-above", ZERO_SHOT),
)

Values = dict[tuple[str, tuple[str, str]], list[float]]


def read_cells(folder: Path) -> Values:
    """Return the values over seeds of each recipe and metric, from a grid's results."""
    found: Values = {}
    for row in pq.read_table(folder / "results/cells.parquet").to_pylist():
        found.setdefault((row["recipe"], (row["evalset"], row["metric"])), []).append(row["value"])
    return found


def judged(values: Values, claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """Return a row per claim: its recipes, the estimate with its interval, and the verdict.

    The verdict is "not measured" if a recipe has fewer than two values.
    """
    rows = []
    for claim in claims:
        both = [values.get((name, claim.metric), []) for name in (claim.better, claim.worse)]
        row: dict[str, Any] = {"claim": claim.name, "better": claim.better, "worse": claim.worse}
        row |= {"value": None, "low": None, "high": None, "verdict": "not measured"}
        if min(map(len, both)) >= 2:
            found = (ratio if claim.is_ratio else difference)(*both)
            row |= {"value": found.value, "low": found.low, "high": found.high}
            row["verdict"] = found.verdict(claim.bound)
        rows.append(row)
    return rows


def difference(better: Sequence[float], worse: Sequence[float]) -> Interval:
    """Return the difference of two means with Welch's interval. Needs two values of each."""
    parts = [variance(one) / len(one) for one in (better, worse)]
    value, error = mean(better) - mean(worse), math.sqrt(sum(parts))
    if error == 0:
        return Interval(value, value, value)
    # Welch's and Satterthwaite's degrees of freedom.
    squares = [part**2 / (len(one) - 1) for part, one in zip(parts, (better, worse), strict=True)]
    freedom = sum(parts) ** 2 / sum(squares)
    half = float(students_t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Interval(value, value - half, value + half)


def ratio(better: Sequence[float], worse: Sequence[float]) -> Interval:
    """Return the ratio of two geometric means. With a value of 0, its interval is unbounded."""
    if min(*better, *worse) <= 0:
        return Interval(math.nan, -math.inf, math.inf)
    found = difference([math.log(one) for one in better], [math.log(one) for one in worse])
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))
