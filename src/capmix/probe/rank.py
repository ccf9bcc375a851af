"""Recipes in the order of their probes, best first, with intervals over seeds and test items."""

from collections.abc import Sequence

from capmix.probe.evaluate import Result
from capmix.report.compare import compare


def ranking(results: dict[str, list[Result]]) -> list[str]:
    """Lines of a table: the average in percent of each subset's probes and its 95 % interval."""
    rows = sorted(compare(results, baseline=""), key=lambda row: -row.average.mean)
    width = max(len(row.name) for row in rows)
    lines = [f"{'rank':>4}  {'subset':<{width}}  seeds  average  95 % interval"]
    for rank, row in enumerate(rows, 1):
        found = row.average
        interval = f"[{found.low:.1f}, {found.high:.1f}]"
        lines.append(
            f"{rank:>4}  {row.name:<{width}}  {row.seeds:>5}  {found.mean:>7.2f}  {interval}"
        )
    return lines


def agreement(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two lists of numbers: 1 where they order their items alike, -1 reversed.

    NaN where one of them does not order anything (M. G. Kendall, Biometrika 33, 1945).
    """
    pairs = [(i, j) for i in range(len(first)) for j in range(i)]
    one = [_sign(first[i] - first[j]) for i, j in pairs]
    other = [_sign(second[i] - second[j]) for i, j in pairs]
    scale = (sum(map(abs, one)) * sum(map(abs, other))) ** 0.5
    return sum(a * b for a, b in zip(one, other, strict=True)) / scale if scale else float("nan")


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
