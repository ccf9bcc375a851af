"""Format the table of recipes for a terminal."""

from collections.abc import Sequence

from capmix.report.compare import RecipeResult
from capmix.report.gather import Found
from capmix.settings.tables import table_lines


def results_table(found: Found, rows: Sequence[RecipeResult], baseline: str) -> list[str]:
    """Return one line per recipe: samples, metrics with deviation over seeds, and intervals."""
    if not rows:
        return []
    shown = shown_metrics(rows)
    metrics = [short_name(name) for name in shown]
    heads = ["recipe", "samples", *metrics, "average [95%]", f"against {baseline} [95%]"]
    lines = []
    for row in rows:
        cells = [f"{row.metrics[name][0]:5.1f} ±{row.metrics[name][1]:4.1f}" for name in shown]
        average, change = row.average, row.against_baseline
        text = f"{average.mean:5.1f} [{average.low:5.1f}, {average.high:5.1f}]"
        against = f"{change.mean:+5.1f} [{change.low:+5.1f}, {change.high:+5.1f}]" if change else ""
        count = found.subsets[row.name].summary.kept
        lines.append([row.name, f"{count:,}", *cells, text, against])
    return table_lines(heads, lines)


def shown_metrics(rows: Sequence[RecipeResult]) -> list[str]:
    """Return the metrics shown in tables: accuracy, recall@1 and recall@5."""
    endings = ("acc1", "recall@1", "recall@5")
    return [name for name in rows[0].metrics if name.endswith(endings)] if rows else []


def short_name(metric: str) -> str:
    """Return a metric's column heading."""
    name = metric.rpartition("/")[2]
    return (
        name.replace("text_retrieval_recall@", "i->t R@")
        .replace("image_retrieval_recall@", "t->i R@")
        .replace("acc1", "zero-shot")
    )
