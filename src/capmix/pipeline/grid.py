"""The grid of an experiment: a training run and its evaluation for every pool, recipe and seed.

`results/cells` has a row for each number of each cell; `results/summary` its mean and standard
deviation over seeds; both as parquet and as CSV.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from capmix import jobs
from capmix.cli.train import command_line
from capmix.errors import UserError
from capmix.evaluate.agreement import agreement
from capmix.mix.mix import Summary
from capmix.pipeline.config import EvaluateSettings, TrainSection
from capmix.storage.store import Store
from capmix.train.run import RunFolder

MEAN = "mean of all sets"
MAIN = "main_metric"
RUNS = "runs"


@dataclass(frozen=True)
class Cell:
    """One run. `numbers` by evaluation set and metric."""

    pool: str
    recipe: str
    samples: int
    seed: int
    numbers: dict[tuple[str, str], float]


def check_training(
    work: jobs.Work, training: TrainSection, captioned: Sequence[str], subsets: Sequence[str]
) -> None:
    """Raise UserError for what would stop a run of `subsets` that is not finished; `captioned` are
    sources that will be."""
    runs = (_run(work, subset, seed) for subset in subsets for seed in training.seeds)
    if work.store.is_local and all(RunFolder(Path(run)).finished for run in runs):
        return
    from capmix.train.train import check_machine, place

    if place()[1] > 1:
        raise UserError("run: one process for the whole file; `train: {devices: N}` uses N GPUs")
    if not work.store.is_local:
        raise UserError(f"train: runs are written to a local disk, not to {work.store.location}")
    work.need_images("train")
    unknown = set(training.texts) - {*captioned, *work.sources()}
    if unknown:
        raise UserError(f"train: no captions of source {min(unknown)!r}, which texts names")
    check_machine(training.of_seed(training.seeds[0]), training.devices)


def run_cells(
    work: jobs.Work,
    pool: str,
    subsets: Sequence[Summary],
    training: TrainSection,
    evaluating: EvaluateSettings | None,
) -> list[Cell]:
    """Train and evaluate each subset with each seed, in `runs/<subset>-seed<k>`.

    Cells that are finished are not made again. Raises UserError where a set cannot be evaluated.
    """
    cells = []
    grid = [(summary, seed) for summary in subsets for seed in training.seeds]
    for number, (summary, seed) in enumerate(grid, 1):
        called = f"run {number} of {len(grid)}, {summary.name}, seed {seed}"
        print(called, file=sys.stderr)
        started = time.monotonic()
        run = _run(work, summary.name, seed)
        _train(work, summary.name, training, seed, run)
        numbers = _evaluated(run, evaluating) if evaluating else {}
        print(f"{called}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        cells.append(Cell(pool, summary.name, summary.kept, seed, numbers))
    return cells


def _run(work: jobs.Work, subset: str, seed: int) -> str:
    return work.store.path(f"{RUNS}/{subset}-seed{seed}")


def _train(work: jobs.Work, subset: str, training: TrainSection, seed: int, run: str) -> None:
    from capmix.train.train import about_run, train

    settings = training.of_seed(seed)
    source = jobs.training_source(work, subset, settings)
    there = RunFolder(Path(run).resolve())
    if work.force and there.is_other(about_run(settings, source)):
        there.remove()
    if training.devices == 1 or there.finished:
        train(settings, source, run, work.max_failures)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(training.devices), "-m", "capmix", "train", "--out", run, "--subset", subset]
    command += ["--pool", work.pool.location, "--work", work.store.location]
    command += ["--max-failures", str(work.max_failures), *command_line(settings)]
    if subprocess.run(command).returncode:  # noqa: S603
        raise UserError(f"{run}: the training failed; its reason is above")


def _evaluated(run: str, settings: EvaluateSettings) -> dict[tuple[str, str], float]:
    from capmix.evaluate.results import evaluate, means_of

    found = evaluate(
        run, settings.tasks, settings.evalsets, device=settings.device, dtype=settings.dtype
    )
    if found.broken or not found.lines:
        raise UserError(f"{run}: {'; '.join(found.broken) or 'no evaluation set is there'}")
    numbers = {
        (line["dataset"], metric): float(value)
        for line in found.lines
        for metric, value in line["metrics"].items()
        if value is not None
    }
    main = [value for (_, metric), value in numbers.items() if metric == MAIN]
    # Of these tasks alone: the run's directory may hold results of others.
    means = {name: value for name, value in means_of(found.lines).items() if value is not None}
    if main:
        means[MEAN] = statistics.mean(main)
    return numbers | {(name, MAIN): value for name, value in means.items()}


def write_tables(
    cells: Sequence[Cell], directory: str, probes: Mapping[tuple[str, str], float]
) -> list[str]:
    """Write both tables below `directory`/results; returns lines that show the means.

    `probes` are averages by pool and recipe, whose order is compared with that of the runs.
    """
    rows = [
        {"pool": cell.pool, "recipe": cell.recipe, "samples": cell.samples, "seed": cell.seed}
        | {"evalset": evalset, "metric": metric, "value": value}
        for cell in cells
        for (evalset, metric), value in cell.numbers.items()
    ]
    if not rows:
        return [f"{len(cells)} runs are trained; nothing was evaluated"]
    summary = summarised(cells)
    store = Store(directory)
    for name, table in (("cells", rows), ("summary", summary)):
        made = pa.Table.from_pylist(table)
        store.write_table(f"results/{name}.parquet", made)
        with store.writing(f"results/{name}.csv") as stream:
            pa_csv.write_csv(made, stream)
    lines = _shown(summary)
    overall = [row for row in summary if (row["evalset"], row["metric"]) == (MEAN, MAIN)]
    both = [(row["mean"], probes.get((str(row["pool"]), str(row["recipe"])))) for row in overall]
    known = [(mean, probe) for mean, probe in both if probe is not None]
    if len(known) > 1:
        tau = agreement(*zip(*known, strict=True))
        lines.append(f"order of probes and runs: Kendall's tau {tau:.2f} over {len(known)} recipes")
    return [*lines, f"tables: {store.path('results')}/summary.csv and cells.csv"]


def summarised(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Mean and standard deviation (of a sample) over seeds for each number of each recipe."""
    values: dict[tuple[str, str, int, str, str], list[float]] = {}
    for cell in cells:
        for (evalset, metric), value in cell.numbers.items():
            key = cell.pool, cell.recipe, cell.samples, evalset, metric
            values.setdefault(key, []).append(value)
    return [
        {"pool": pool, "recipe": recipe, "samples": samples, "evalset": evalset, "metric": metric}
        | {"seeds": len(found), "mean": statistics.mean(found)}
        | {"deviation": statistics.stdev(found) if len(found) > 1 else None}
        for (pool, recipe, samples, evalset, metric), found in values.items()
    ]


def _shown(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Main metrics in percent: a line for each recipe, a column for each set."""
    main = [row for row in summary if row["metric"] == MAIN]
    sets = list(dict.fromkeys(str(row["evalset"]) for row in main))
    recipes = list(dict.fromkeys((str(r["pool"]), str(r["recipe"]), r["samples"]) for r in main))
    cells = {(r["pool"], r["recipe"], r["evalset"]): _percent(r) for r in main}
    shown = sets if len(sets) <= 6 else sets[-6:]  # of many tasks the means alone
    heads = ["pool", "recipe", "samples", *shown]
    lines = [
        [pool, recipe, f"{samples:,}", *(cells.get((pool, recipe, one), "") for one in shown)]
        for pool, recipe, samples in recipes
    ]
    widths = [max(len(row[i]) for row in [heads, *lines]) for i in range(len(heads))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [heads, *lines]]  # fmt: skip


def _percent(row: Mapping[str, Any]) -> str:
    spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"
