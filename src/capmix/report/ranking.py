"""Rank recipes by their probes, best first, with intervals over seeds and test items."""

from capmix.probe.evaluate import ProbeResult
from capmix.report.compare import compare
from capmix.settings.tables import table_lines


def ranking(results: dict[str, list[ProbeResult]]) -> list[str]:
    """Return the lines of a table: each subset's average in percent and its 95% interval."""
    rows = sorted(compare(results, baseline=""), key=lambda row: -row.average.mean)
    lines = []
    for rank, row in enumerate(rows, 1):
        found = row.average
        interval = f"[{found.low:.1f}, {found.high:.1f}]"
        lines.append([str(rank), row.name, str(row.seeds), f"{found.mean:.2f}", interval])
    return table_lines(["rank", "subset", "seeds", "average", "95% interval"], lines, "rlrrl")
