"""Evaluation results as tables: one row per task of a run, or per run and probe of a work
directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from capmix.errors import UserError
from capmix.evaluation.classes import class_table
from capmix.evaluation.results import MAIN, OTHERS, RESULTS, SUMMARY
from capmix.evaluation.results_file import read_lines
from capmix.evaluation.tables import lines_table, wide_table
from capmix.storage import layout
from capmix.storage.json_text import parse_object
from capmix.storage.store import Store

CELLS = f"{layout.RESULTS}/cells.parquet"
ABOUT_RUN = {
    "of": pa.string(),
    "subset": pa.string(),
    "seed": pa.int64(),
    "samples": pa.int64(),
}


def run_table(folder: Path) -> pa.Table:
    """Return the results of a run's latest evaluation as a table (see lines_table).

    Raises UserError if there are none, or if its files are damaged.
    """
    return lines_table(_latest(folder))


def run_class_table(folder: Path) -> pa.Table:
    """Return the results per class of a run's latest evaluation (see class_table).

    Raises UserError if there are no results, or if its files are damaged.
    """
    return class_table(_latest(folder))


def _latest(folder: Path) -> list[dict[str, Any]]:
    fingerprint = _fingerprint(folder / SUMMARY)
    files = [*sorted(folder.glob(f"{RESULTS}*.jsonl")), *sorted(folder.glob(f"{OTHERS}*.jsonl"))]
    lines = [line for file in files for line in read_lines(file)]
    found = [line for line in lines if fingerprint in (None, line["fingerprint"])]
    if not found:
        raise UserError(f"{folder}: no results; run `capmix eval {folder}` first")
    return found


def work_table(store: Store) -> pa.Table:
    """Return one row per trained run of the grid and per probe of a subset.

    Columns: of (run, probe, or probe and its towers if these are not the embedded ones), subset,
    seed, samples, and one per metric. SET/METRIC is a metric of an evaluation set; SET is the set's
    main metric. All values are fractions from 0 to 1. Probes of subsets that have been remixed
    since are omitted.
    """
    return wide_table([*_runs(store), *_probes(store)], ABOUT_RUN)


def _runs(store: Store) -> list[dict[str, Any]]:
    if not store.exists(CELLS):
        return []
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for cell in store.read_table(CELLS).to_pylist():
        about = {"of": "run", "subset": cell["recipe"], "seed": cell["seed"]}
        about |= {"samples": cell["samples"]}
        row = rows.setdefault((cell["pool"], cell["recipe"], cell["seed"]), about)
        row[_name(cell["evalset"], cell["metric"])] = cell["value"]
    return list(rows.values())


def _probes(store: Store) -> list[dict[str, Any]]:
    rows = []
    for part in store.parts(layout.PROBE_RESULTS):
        _, subset, rest = part.split("/", 2)
        probe = f"{layout.PROBES}/{part.partition('/')[2]}"
        trained, marker = store.read_marker(probe), store.read_marker(part)
        now, of_subset = store.fingerprint_and_marker(f"{layout.SUBSETS}/{subset}")
        if trained is None or marker is None or of_subset is None:
            continue
        if trained.inputs.get("subset") != now:
            continue
        if marker.inputs.get("checkpoint") != store.fingerprint(probe):
            continue
        towers = rest.rpartition("/")[0]
        of = f"probe {towers}" if towers else "probe"
        row = {"of": of, "subset": subset, "seed": trained.config.get("seed")}
        row |= {"samples": of_subset.extra["summary"]["kept"]}
        for evalset, metrics in marker.extra["metrics"].items():
            row |= {_name(evalset, metric): value for metric, value in metrics.items()}
            row[evalset] = _main(metrics)
        rows.append(row)
    return rows


def _main(metrics: Mapping[str, float]) -> float | None:
    """Return the main metric of a probe's set, as in `capmix eval`: acc1, or mean_recall@1."""
    if "acc1" in metrics:
        return metrics["acc1"]
    both = [metrics.get(f"{side}_retrieval_recall@1") for side in ("text", "image")]
    known = [value for value in both if value is not None]
    return sum(known) / 2 if len(known) == 2 else None


def _name(evalset: str, metric: str) -> str:
    return evalset if metric == MAIN else f"{evalset}/{metric}"


def _fingerprint(summary: Path) -> str | None:
    try:
        found = parse_object(summary.read_bytes()).get("fingerprint")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None
