"""The result of `capmix tune`: a row per candidate and baseline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from capmix.report.compare import MeanEstimate
from capmix.settings.counted import counted
from capmix.settings.tables import table_html, table_lines
from capmix.storage.draft import Draft
from capmix.storage.layout import TUNES
from capmix.storage.marker import Counts, Marker
from capmix.storage.once import once
from capmix.storage.store import Store

ESTIMATE = ("mean", "low", "high")
SCHEMA = pa.schema(
    [
        ("subset", pa.string()),
        ("role", pa.string()),
        ("chosen", pa.bool_()),
        ("parameters", pa.string()),
        ("rows", pa.int64()),
        ("seeds", pa.int64()),
        *((f"{side}_{one}", pa.float64()) for side in ("dev", "held_out") for one in ESTIMATE),
        ("reason", pa.string()),
    ]
)
HEADS = ["", "subset", "rows", "seeds", "dev", "95% interval", "held-out", "95% interval"]


@dataclass(frozen=True)
class TuneRow:
    """A candidate or baseline. Averages are in percent, with 95% intervals.

    `seeds` is the number of probes on the dev side. `dev` is None if the subset could not be mixed,
    for the `reason`; `held_out` is None for candidates that were not chosen.
    """

    subset: str
    role: str
    parameters: Mapping[str, Any]
    rows: int | None
    seeds: int
    dev: MeanEstimate | None
    held_out: MeanEstimate | None
    chosen: bool
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """The rows, the chosen subset, and its difference from each baseline on the held-out side.

    A difference is None if the baseline itself was chosen. `dev_images` and `held_out_images` are
    the numbers of images of the two sides.
    """

    name: str
    rows: Sequence[TuneRow]
    best: str
    against: Mapping[str, MeanEstimate | None]
    probes: int
    budget: int
    dev_images: int
    held_out_images: int

    @property
    def chosen(self) -> TuneRow:
        """The row of the chosen candidate."""
        return next(row for row in self.rows if row.chosen)

    def lines(self) -> list[str]:
        """Return the table, the choice and its differences as lines to print."""
        lines = table_lines(HEADS, self._cells(), "llrrrlrl")
        lines += [f"left out: {row.subset}: {row.reason}" for row in self.rows if row.reason]
        lines += [
            "",
            f"chosen: {self.best} ({_shown(self.chosen.parameters)}), on "
            f"{counted(self.dev_images, 'dev image')} with {self.probes} of {self.budget} probes",
        ]
        where = f" on {counted(self.held_out_images, 'held-out image')}"
        lines += [
            f"against {name}: {'the same subset' if change is None else change.as_change(where)}"
            for name, change in self.against.items()
        ]
        return lines

    def to_table(self) -> pa.Table:
        """Return a row per candidate and baseline; averages are in percent."""
        return pa.Table.from_pylist([_record(row) for row in self.rows], SCHEMA)

    def _cells(self) -> list[list[str]]:
        def place(row: TuneRow) -> tuple[bool, int, float]:
            return not row.chosen, -row.seeds, -(row.dev.mean if row.dev else 0.0)

        return [
            [
                "chosen" if row.chosen else "baseline" if row.role == "baseline" else "",
                row.subset,
                "" if row.rows is None else f"{row.rows:,}",
                str(row.seeds),
                *_two(row.dev),
                *_two(row.held_out),
            ]
            for row in sorted(self.rows, key=place)
        ]

    def _repr_html_(self) -> str:
        return table_html(HEADS, self._cells(), "llrrrlrl", title=f"chosen: {self.best}")


def write_tuning(
    store: Store, found: Tuning, inputs: dict[str, str], config: dict[str, Any]
) -> None:
    """Write `tunes/<name>.parquet` unless it is up to date."""
    part = f"{TUNES}/{found.name}"
    config = config | {"best": found.best}

    def make(draft: Draft) -> Marker:
        draft.write_table(f"{part}.parquet", found.to_table())
        return Marker(inputs, config, len(found.rows), Counts(ok=len(found.rows)))

    once(store, part, inputs, config, make, files=[f"{part}.parquet"])


def _record(row: TuneRow) -> dict[str, Any]:
    found = {
        "subset": row.subset,
        "role": row.role,
        "chosen": row.chosen,
        "parameters": json.dumps(row.parameters, sort_keys=True),
        "rows": row.rows,
        "seeds": row.seeds,
        "reason": row.reason,
    }
    for side, estimate in (("dev", row.dev), ("held_out", row.held_out)):
        if estimate is not None:
            found |= {f"{side}_{one}": getattr(estimate, one) for one in ESTIMATE}
    return found


def _two(estimate: MeanEstimate | None) -> list[str]:
    if estimate is None:
        return ["", ""]
    return [f"{estimate.mean:.2f}", f"[{estimate.low:.1f}, {estimate.high:.1f}]"]


def _shown(parameters: Mapping[str, Any]) -> str:
    shown = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in parameters.items())
    return ", ".join(shown)
