"""Recipes in the order of their probes, best first, with intervals over seeds and test items."""

from capmix.probe.evaluate import ProbeResult
from capmix.report.compare import compare


def ranking(results: dict[str, list[ProbeResult]]) -> list[str]:
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
