"""Zero-shot accuracy per class, and per group of classes such as common and rare ones.

The groups of a set are in its folder, in `groups.csv` with the columns class and group. `class` is
a name of classnames.txt; classes without a row have no group. A line of results (results_file.py)
has the counts of its classes, so groups can change without another evaluation.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from capmix.errors import UserError
from capmix.evaluation.metrics import TOP, Classification

GROUPS = "groups.csv"
MAX_BYTES = 1 << 24
MAX_GROUPS, MAX_NAME = 100, 64
FIELD = "group"  # in names of metrics: acc1_group:rare; see groups.by_group
ACC1 = f"acc1_{FIELD}:"
COLUMNS = ("name", "group", "images", "hits1", "hits5")
TABLE = pa.schema(
    [
        ("task", pa.string()),
        ("class", pa.int64()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("images", pa.int64()),
        ("acc1", pa.float64()),
        ("acc5", pa.float64()),
    ]
)

Counts = dict[str, list[Any]]


def count_classes(result: Classification, names: Sequence[str]) -> Counts:
    """Return counts per class, in lists: images, and images with the class first (hits1) or among
    the first five (hits5, empty for fewer than five classes); also name, and an empty group."""
    every = np.ones(len(result.labels), bool)
    images, hits1, hits5 = (
        np.bincount(result.labels[rows], minlength=result.classes).tolist()
        for rows in (every, result.hits1, result.hits5)
    )
    counts = {"images": images, "hits1": hits1, "hits5": hits5 if result.classes >= TOP else []}
    return {"name": list(names), "group": [""] * len(names)} | counts


def with_groups(line: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Return a line of results with the metrics of these groups instead of its earlier ones.

    `groups` has the group of each class, empty for none. The metrics of a group are over the images
    of its classes: acc1_group:NAME, acc5_group:NAME and count_group:NAME, the number of images.
    Groups without images have none.
    """
    counts = line.get("classes")
    if counts is None:
        return dict(line)
    groups = list(groups) or [""] * len(counts["name"])
    of_groups: dict[str, float] = {}
    for group in sorted({name for name in groups if name}):
        rows = [number for number, name in enumerate(groups) if name == group]
        images = sum(counts["images"][row] for row in rows)
        for name, hits in (("acc1", counts["hits1"]), ("acc5", counts["hits5"])):
            if hits and images:
                of_groups[f"{name}_{FIELD}:{group}"] = sum(hits[row] for row in rows) / images
        if images:
            of_groups[f"count_{FIELD}:{group}"] = float(images)
    metrics = {k: v for k, v in line["metrics"].items() if f"_{FIELD}:" not in k}
    return {**line, "metrics": metrics | of_groups, "classes": counts | {"group": groups}}


def group_accuracy(metrics: Iterable[str]) -> dict[str, str]:
    """Return the metrics with the accuracy of a group, by group."""
    return {name.removeprefix(ACC1): name for name in metrics if name.startswith(ACC1)}


def of_group(group: str, evalset: str) -> str:
    """Return the name of a group's column in tables."""
    return f"{group} ({evalset})"


def class_rows(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per task and class; see class_table."""
    return [
        {"task": line["key"], "class": number, "name": name, "group": group or None}
        | {"images": images, "acc1": _share(hits1, images), "acc5": _share(hits5, images)}
        for line in lines
        if line.get("classes")
        for number, (name, group, images, hits1, hits5) in enumerate(_by_class(line["classes"]))
    ]


def class_table(lines: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return a row per task and class: task, class, name, group, images, acc1, acc5.

    `class` is the line number in classnames.txt, from 0. Accuracies are fractions, null for classes
    without images; acc5 is also null in sets of fewer than five classes. The means of acc1 and acc5
    over a task's classes, weighted by images, are the task's acc1 and acc5.
    """
    return pa.Table.from_pylist(class_rows(lines), TABLE)


def is_sound(counts: Any) -> bool:
    """Return whether a value, read from a file, has the form of count_classes."""
    if counts is None:
        return True
    if not isinstance(counts, dict) or set(counts) != set(COLUMNS):
        return False
    if not all(isinstance(column, list) for column in counts.values()):
        return False
    sizes = {len(counts[name]) for name in COLUMNS if name != "hits5" or counts[name]}
    texts = all(isinstance(one, str) for one in counts["name"] + counts["group"])
    numbers = (counts[name] for name in ("images", "hits1", "hits5"))
    whole = all(type(one) is int and one >= 0 for column in numbers for one in column)
    return len(sizes) == 1 and texts and whole


def read_groups(root: Path, classes: Sequence[str]) -> list[str]:
    """Return the group of each class, empty for none; an empty list if the set has no groups.

    Raises UserError if the file cannot be read, has no columns class and group, or names a class
    that is unknown or in two groups.
    """
    path = root / GROUPS
    if not path.exists():
        return []
    found: dict[str, str] = {}
    known = set(classes)
    for number, name, group in _rows(path):
        where = f"evaluation set: {path}, line {number}"
        if name not in known:
            raise UserError(f"{where}: class {name!r:.60} is not in classnames.txt; correct it")
        if len(group) > MAX_NAME or not group.isprintable():
            raise UserError(f"{where}: expected a group of at most {MAX_NAME} printable characters")
        if found.setdefault(name, group) != group:
            raise UserError(
                f"{where}: class {name!r:.60} is in the groups {found[name]} and {group}; keep one"
            )
    if len(set(found.values())) > MAX_GROUPS:
        raise UserError(f"evaluation set: {path}: expected at most {MAX_GROUPS} groups")
    return [found.get(name, "") for name in classes]


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Return line number, class and group of each row that is not empty."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"evaluation set: {path} is larger than {MAX_BYTES} bytes")
        table = csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline=""), restval="")
        rows = [(table.line_num, row) for row in table]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"evaluation set: {path}: {error}") from error
    if not {"class", "group"} <= set(table.fieldnames or ()):
        heads = ", ".join(table.fieldnames or ()) or "none"
        raise UserError(
            f"evaluation set: {path}: expected the columns class and group, found {heads:.80}"
        )
    cells = ((number, row["class"].strip(), row["group"].strip()) for number, row in rows)
    return [(number, name, group) for number, name, group in cells if name or group]


def _by_class(counts: Counts) -> Iterable[tuple[str, str, int, int, int | None]]:
    hits5 = counts["hits5"] or [None] * len(counts["name"])
    columns = (counts[name] for name in COLUMNS if name != "hits5")
    return zip(*columns, hits5, strict=True)


def _share(hits: int | None, images: int) -> float | None:
    return None if hits is None or not images else hits / images
