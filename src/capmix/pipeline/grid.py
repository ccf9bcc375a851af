"""The experiment grid: one training run and its evaluation per pool, recipe and seed.

`results/cells` has one row per metric of each run; `results/summary` has the mean and standard
deviation over seeds. `results/classes` has one row per class of each run; it is written if an
evaluation set has groups of classes, or if `classes` is set. All are written as parquet and CSV.
"""

import logging
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from capmix.errors import UserError
from capmix.evaluation.agreement import agreement
from capmix.evaluation.classes import class_rows, group_accuracy, of_group
from capmix.evaluation.results import MAIN, MEAN
from capmix.pipeline.config import EvaluateSection, TrainSection
from capmix.settings.counted import counted
from capmix.settings.tables import table_lines
from capmix.storage.layout import RESULTS, RUNS
from capmix.storage.names import no_captions
from capmix.storage.store import Store
from capmix.training.launch import SideBySide, TrainingData, launch, pool_source
from capmix.training.run import RunFolder
from capmix.training.train import about_run
from capmix.workspace import Subset, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One run of the grid. `numbers` are by evaluation set and metric; `classes` are rows of
    results per class (evaluation/classes.py)."""

    pool: str
    recipe: str
    samples: int
    seed: int
    numbers: dict[tuple[str, str], float]
    classes: Sequence[dict[str, Any]] = ()


def check_training(
    work: Workspace, training: TrainSection, captioned: Sequence[str], subsets: Sequence[str]
) -> None:
    """Raise UserError if a run of `subsets` that is not finished could not be trained.

    `captioned` are the sources that earlier stages of the pipeline write.
    """
    runs = (_run(work, subset, seed) for subset in subsets for seed in training.seeds)
    if work.store.is_local and all(RunFolder(Path(run)).finished for run in runs):
        return
    from capmix.training.train import check_machine, on_cpu, place

    if place()[1] > 1:
        raise UserError("run: start a single process; `train: {devices: N}` trains on N GPUs")
    if not work.store.is_local:
        raise UserError(f"train: runs are written to a local disk, not to {work.store.location}")
    work.pool.need_images("train")
    have = sorted({*captioned, *work.sources()})
    if unknown := set(training.texts).difference(have):
        raise UserError(f"train: texts: {no_captions(min(unknown), have)}")
    settings = training.of_seed(training.seeds[0])
    check_machine(settings, training.devices)
    if training.parallel > 1 and not on_cpu(settings, 1):
        raise UserError(
            "train: parallel: only for runs on a CPU, because all would use the same GPU; omit it, "
            "or set device: cpu"
        )


def run_cells(
    work: Workspace,
    pool: str,
    subsets: Sequence[Subset],
    training: TrainSection,
    evaluating: EvaluateSection | None,
) -> list[Cell]:
    """Train and evaluate each subset with each seed, in `runs/<subset>-seed<k>`.

    Finished runs are not retrained. Raises UserError if an evaluation set cannot be evaluated.
    """
    cells = []
    grid = [(subset, seed) for subset in subsets for seed in training.seeds]
    if training.parallel > 1:
        _train_side_by_side(work, grid, training)
    for number, (subset, seed) in enumerate(grid, 1):
        called = f"run {number} of {len(grid)}, {subset.name}, seed {seed}"
        log.info("%s", called)
        started = time.monotonic()
        run = _run(work, subset.name, seed)
        _train(work, subset, training, seed, run)
        numbers, classes = _evaluated(run, evaluating) if evaluating else ({}, [])
        log.info("%s: %.1f s", called, time.monotonic() - started)
        cells.append(Cell(pool, subset.name, subset.summary.kept, seed, numbers, classes))
    return cells


def _train_side_by_side(
    work: Workspace, grid: Sequence[tuple[Subset, int]], training: TrainSection
) -> None:
    """Train `parallel` runs at the same time.

    After an error, no other run is begun, and those that have begun are trained to their end. An
    interrupt ends them at once.
    """
    beside, failed = SideBySide(training.parallel), threading.Event()

    def one(subset: Subset, seed: int) -> None:
        if failed.is_set():
            return
        try:
            _train(work, subset, training, seed, _run(work, subset.name, seed), beside)
        except Exception as error:  # reported now: the runs beside it may take hours
            failed.set()
            log.error("run %s, seed %d: %s", subset.name, seed, error)
            raise

    threads = ThreadPoolExecutor(training.parallel)
    waiting = [threads.submit(one, subset, seed) for subset, seed in grid]
    try:
        for number, _ in enumerate(as_completed(waiting), 1):
            if not failed.is_set():
                log.info("%s", f"{number} of {len(grid)} runs trained")
        for done in waiting:
            done.result()
    except BaseException:
        beside.stop()
        raise
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _run(work: Workspace, subset: str, seed: int) -> str:
    return work.store.path(f"{RUNS}/{subset}-seed{seed}")


def _train(
    work: Workspace,
    subset: Subset,
    training: TrainSection,
    seed: int,
    run: str,
    beside: SideBySide | None = None,
) -> None:
    """Train in a separate process, unless the run is finished."""
    settings = training.of_seed(seed)
    source = pool_source(work.pool, work.store, subset.name, settings)
    there = RunFolder(Path(run).resolve())
    about = about_run(settings, source)
    if work.runs.force and there.is_other(about):
        there.remove()
    there.refuse_others(about)
    if there.finished:
        there.check_failures(work.runs.max_failures)
        return
    data = TrainingData.of_subset(work.pool, work.store, subset.name)
    launch(settings, data, run, work.runs.max_failures, training.devices, beside=beside)


def _evaluated(
    run: str, settings: EvaluateSection
) -> tuple[dict[tuple[str, str], float], list[dict[str, Any]]]:
    """Return the numbers of a run, and its results per class if they are wanted."""
    from capmix.evaluation.results import evaluate, means_of

    found = evaluate(
        run, settings.tasks, settings.evalsets, None, settings.device, settings.dtype,
        settings.classes,
    )  # fmt: skip
    if found.broken or not found.lines:
        raise UserError(f"{run}: {'; '.join(found.broken) or 'no evaluation set found'}")
    numbers = {
        (line["dataset"], metric): float(value)
        for line in found.lines
        for metric, value in line["metrics"].items()
        if value is not None
    }
    main = [value for (_, metric), value in numbers.items() if metric == MAIN]
    # Means over these tasks only: the run's directory may have results of others.
    means = {name: value for name, value in means_of(found.lines).items() if value is not None}
    if main:
        means[MEAN] = statistics.mean(main)
    wanted = [x for x in found.lines if settings.classes or group_accuracy(x["metrics"])]
    return numbers | {(name, MAIN): value for name, value in means.items()}, class_rows(wanted)


def write_tables(
    cells: Sequence[Cell], directory: str, probes: Mapping[tuple[str, str], float]
) -> list[str]:
    """Write the tables to `directory`/results, and return lines that show the means.

    `probes` are averages by pool and recipe; their ranking is compared with the runs' ranking.
    """
    rows = [
        _about(cell) | {"evalset": evalset, "metric": metric, "value": value}
        for cell in cells
        for (evalset, metric), value in cell.numbers.items()
    ]
    classes = [_about(cell) | row for cell in cells for row in cell.classes]
    if not rows:
        return [f"{counted(len(cells), 'run')} trained, none evaluated"]
    summary = summarised(cells)
    store = Store(directory)
    for name, table in (("cells", rows), ("summary", summary), ("classes", classes)):
        if not table:
            store.remove(f"{RESULTS}/{name}.parquet")
            store.remove(f"{RESULTS}/{name}.csv")
            continue
        rows_table = pa.Table.from_pylist(table)
        store.write_table(f"{RESULTS}/{name}.parquet", rows_table)
        with store.writing(f"{RESULTS}/{name}.csv") as stream:
            pa_csv.write_csv(rows_table, stream)
    lines = _shown(summary)
    overall = [row for row in summary if (row["evalset"], row["metric"]) == (MEAN, MAIN)]
    both = [(row["mean"], probes.get((str(row["pool"]), str(row["recipe"])))) for row in overall]
    known = [(mean, probe) for mean, probe in both if probe is not None]
    if len(known) > 1:
        tau = agreement(*zip(*known, strict=True))
        lines.append(
            f"ranking by probes and by runs: Kendall's tau {tau:.2f} over "
            f"{counted(len(known), 'recipe')}"
        )
    names = "summary.csv, cells.csv and classes.csv" if classes else "summary.csv and cells.csv"
    return [*lines, f"tables: {store.path(RESULTS)}/{names}"]


def _about(cell: Cell) -> dict[str, Any]:
    return {"pool": cell.pool, "recipe": cell.recipe, "samples": cell.samples, "seed": cell.seed}


def summarised(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return mean and sample standard deviation over seeds for each metric of each recipe."""
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
    """Format main metrics in percent: one line per recipe, one column per evaluation set.

    For up to six sets, groups of classes have columns too.
    """
    main = [row for row in summary if row["metric"] == MAIN]
    sets = list(dict.fromkeys(str(row["evalset"]) for row in main))
    recipes = list(dict.fromkeys((str(r["pool"]), str(r["recipe"]), r["samples"]) for r in main))
    cells = {(r["pool"], r["recipe"], r["evalset"]): _percent(r) for r in main}
    shown = sets if len(sets) <= 6 else sets[-6:]  # the means only, if there are many tasks
    if shown == sets:
        for row in summary:
            for group in group_accuracy([row["metric"]]):
                name = of_group(group, row["evalset"])
                cells[row["pool"], row["recipe"], name] = _percent(row)
                shown = [*dict.fromkeys([*shown, name])]
    heads = ["pool", "recipe", "samples", *shown]
    lines = [
        [pool, recipe, f"{samples:,}", *(cells.get((pool, recipe, one), "") for one in shown)]
        for pool, recipe, samples in recipes
    ]
    return table_lines(heads, lines, "ll")


def _percent(row: Mapping[str, Any]) -> str:
    spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    return f"{100 * row['mean']:.1f}{spread}"
