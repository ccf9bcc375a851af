"""Convert results to tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

MAIN = "main_metric"  # key of the main metric in DataComp's files
ABOUT_TASK = {
    "task": pa.string(),
    "dataset": pa.string(),
    "metric": pa.string(),
    "value": pa.float64(),
    "precision": pa.string(),
}


def lines_table(lines: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return a row per task: task, dataset, metric, value, precision, and a column per metric.

    Values are fractions, 0 to 1; null if the task does not have the metric.
    """
    rows = []
    for line in lines:
        metrics = {name: value for name, value in line["metrics"].items() if name != MAIN}
        about = {"task": line["key"], "dataset": line["dataset"], "metric": line["metric"]}
        about |= {"value": line["metrics"][MAIN], "precision": line.get("precision")}
        rows.append(about | {name: one for name, one in metrics.items() if name not in about})
    return wide_table(rows, ABOUT_TASK)


def wide_table(rows: Sequence[Mapping[str, Any]], about: Mapping[str, pa.DataType]) -> pa.Table:
    """Return a table with a column for each key of any row; those of `about` come first."""
    numbers = dict.fromkeys(name for row in rows for name in row if name not in about)
    columns = {
        name: pa.array([row.get(name) for row in rows], kind) for name, kind in about.items()
    }
    columns |= {
        name: pa.array([row.get(name) for row in rows], pa.float64(), from_pandas=True)
        for name in numbers
    }
    return pa.table(columns)
