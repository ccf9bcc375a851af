"""What a figure shows, apart from how it is drawn: on the page, or in a file."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["line", "points", "steps"]


@dataclass(frozen=True)
class Series:
    """One line, cloud of points or histogram. `low` and `high` are ends of intervals: of `y`, or
    of `x` where the figure's `y` are names. `labels` say what each point is."""

    name: str
    x: Sequence[float]
    y: Sequence[float] | Sequence[str]
    kind: Kind = "line"
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """`name` is that of its files, `about` says in words what is to be seen. `marks` are vertical
    lines: what they are called, and where they stand."""

    name: str
    title: str
    about: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    marks: Sequence[tuple[str, float]] = field(default_factory=tuple)

    def csv(self) -> str:
        """The numbers behind the figure."""
        out = io.StringIO()
        writer = csv.writer(out)
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
        return out.getvalue()


def _inert(text: str) -> str:
    """A cell that a spreadsheet takes for text: captions are not ours."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
