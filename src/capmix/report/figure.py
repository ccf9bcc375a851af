"""The content of a figure, independent of how it is drawn."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["line", "points", "steps", "cloud"]
Mark = Literal["best", "tie", "lower", ""]  # compared with the highest
PUBLISHED = "published"


@dataclass(frozen=True)
class Series:
    """One line, group of points or histogram.

    `low` and `high` are the ends of intervals of `y`; `labels` name the points. If `named`, `short`
    (default: `name`) is written next to the series. `marks` compare each point with the highest.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    labels: Sequence[str] = ()
    colour: str = "ink"
    shape: int = 0
    dashed: bool = False
    hollow: bool = False
    short: str = ""
    part: str = ""
    named: bool = True
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class FigureRow:
    """A row of a figure that lists recipes.

    `mark` compares it with the highest; `difference` is the difference from the baseline, with the
    ends of its interval if there is one.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = "ink"
    mark: Mark = ""
    group: str = ""
    difference: tuple[float, float | None, float | None] | None = None


@dataclass(frozen=True)
class Figure:
    """A figure with either `series`, or `rows` by group.

    `name` is the stem of its files; `about` describes the figure in words. `marks` are vertical
    lines, `levels` and `published` horizontal ones: pairs of a name and a value.
    """

    name: str
    title: str
    about: str
    x_label: str
    y_label: str
    series: Sequence[Series] = ()
    x_log: bool = False
    y_log: bool = False
    marks: Sequence[tuple[str, float]] = field(default_factory=tuple)
    levels: Sequence[tuple[str, float]] = field(default_factory=tuple)
    published: Sequence[tuple[str, float]] = field(default_factory=tuple)
    rows: Sequence[FigureRow] = ()
    baseline: str = ""

    def csv(self) -> str:
        """Return the data of the figure as CSV."""
        out = io.StringIO()
        writer = csv.writer(out)
        if self.rows:
            against = [f"against {self.baseline}", "low", "high"] if self.baseline else []
            writer.writerow([self.y_label, self.x_label, "low", "high", "group", *against])
            for row in self.rows:
                change = list(row.difference or (None, None, None)) if against else []
                writer.writerow(
                    [_inert(row.name), row.value, row.low, row.high, row.group, *change]
                )
            return out.getvalue()
        intervals = any(one.low for one in self.series)
        labels = any(one.labels for one in self.series)
        heads = ["series", self.x_label, self.y_label]
        writer.writerow(heads + ["low", "high"] * intervals + ["label"] * labels)
        for one in self.series:
            for i, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
                ends = [one.low[i], one.high[i]] if one.low else ["", ""]
                label = one.labels[i] if one.labels else ""
                writer.writerow([one.name, x, y] + ends * intervals + [_inert(label)] * labels)
        for name, value in self.marks:
            writer.writerow([name, value, ""] + ["", ""] * intervals + [""] * labels)
        for name, value in [*self.levels, *self.published]:
            writer.writerow([name, "", value] + ["", ""] * intervals + [""] * labels)
        return out.getvalue()


def _inert(text: str) -> str:
    """Escape a cell so that spreadsheets do not evaluate it: captions are untrusted."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
